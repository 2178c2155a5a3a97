"""A full disk, a read-only one, a folder that is removed, a clock that goes back: one sentence, and nothing is lost."""

import itertools
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest
import torch

import atomtune
from atomtune.training import checkpoints
from tests.training.quick import state

OPTIONS = {"steps": 12, "checkpoint_every": 2, "report_to": "none"}


@pytest.fixture
def disk(tmp_path):
    """A small disk of its own, and how to change its options."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=700k", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("only root can mount a small disk, and not in every container")
    yield place, lambda options: subprocess.run(["mount", "-o", f"remount,{options}", str(place)], check=True)
    subprocess.run(["umount", str(place)], check=True)


@pytest.fixture
def at_step(monkeypatch):
    """Call something in the middle of the nth optimizer step."""

    def at_step(number: int, call) -> None:
        step, left = torch.optim.AdamW.step, itertools.count(1)

        def stepping(self, closure=None):
            if next(left) == number:
                call()
            return step(self, closure)

        monkeypatch.setattr(torch.optim.AdamW, "step", stepping)

    return at_step


def whole_checkpoints(out: Path) -> list[int]:
    """The steps of the checkpoints, each of which opens."""
    return [checkpoints.load_state(folder)["step"] for folder in checkpoints.checkpoints(out / "checkpoints")]


def test_a_full_disk_keeps_the_last_checkpoint_and_the_run_goes_on_when_there_is_room(run, disk, tmp_path):
    place, remount = disk
    run("whole", **OPTIONS)
    (place / "other").write_bytes(bytes(200_000))
    with pytest.raises(atomtune.UserError, match="No space left on device"):
        run(place / "run", **OPTIONS, checkpoints_total_limit=10)
    before = whole_checkpoints(place / "run")
    assert before and before[-1] < 12
    assert not list((place / "run").rglob(".atomtune-*"))
    remount("size=20m")
    run(place / "run", **OPTIONS, checkpoints_total_limit=10)
    assert state(place / "run") == state(tmp_path / "whole")


def test_a_disk_that_becomes_read_only_keeps_the_last_checkpoint(run, disk, at_step, tmp_path, monkeypatch):
    place, remount = disk
    run("whole", **OPTIONS)
    remount("size=20m")
    at_step(5, lambda: remount("ro"))
    with pytest.raises(atomtune.UserError, match=r"could not write .*Read-only file system"):
        run(place / "run", **OPTIONS)
    assert whole_checkpoints(place / "run") == [2, 4]
    with pytest.raises(atomtune.UserError, match="cannot be written by this user: choose another folder"):
        run(place / "run", **OPTIONS)
    remount("rw")
    monkeypatch.undo()
    run(place / "run", **OPTIONS)
    assert state(place / "run") == state(tmp_path / "whole")


def test_a_folder_that_is_moved_away_is_not_begun_again(run, at_step, tmp_path, monkeypatch):
    run("whole", **OPTIONS)
    out, away = tmp_path / "run", tmp_path / "away"
    at_step(5, lambda: shutil.move(out, away))
    with pytest.raises(atomtune.UserError, match="was removed or moved while the run was writing into it, so"):
        run(**OPTIONS)
    assert not out.exists() and whole_checkpoints(away) == [2, 4]
    shutil.move(away, out)
    monkeypatch.undo()
    run(**OPTIONS)
    assert state(out) == state(tmp_path / "whole")


def test_a_clock_that_goes_back_changes_nothing(run, tmp_path, monkeypatch):
    """The clock of the machine itself stays, because others use it."""
    run("whole", **OPTIONS)
    days = itertools.count()
    monkeypatch.setattr(time, "time", lambda: 1.8e9 - 86400.0 * next(days))
    assert run(**OPTIONS)["seconds"] > 0
    assert state(tmp_path / "run") == state(tmp_path / "whole")
