"""The journal says how far a run is, to other processes too, and finds the process to stop."""

import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from atomtune import customize
from atomtune.errors import UserError
from atomtune.shipped import IMAGES
from atomtune.training import journal
from tests.training.quick import QUICK

ON_MOJI = QUICK | {"preserve": False, "floor": 0.0}


def lines(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / journal.FILE).read_text().splitlines()]


def test_a_finished_run_has_all_its_steps(tmp_path, monkeypatch):
    monkeypatch.setattr(journal, "EVERY", 0.0)
    out = tmp_path / "run"
    customize(IMAGES / "teapot.png", out=out, **ON_MOJI)
    progress = journal.read(out)
    assert progress is not None and (progress.state, progress.step, progress.steps) == ("finished", 4, 4)
    assert [step for step, _ in progress.losses] == [1, 2, 3, 4] and str(progress) == "finished, 4 steps"
    assert not progress.running  # although the process that trained lives on
    assert journal.FILE.as_posix() in (out / "atomtune-files.txt").read_text().splitlines()
    with pytest.raises(UserError, match="run is not being trained now: there is nothing to stop"):
        journal.stop(out)
    customize(out=out, images=IMAGES / "teapot.png", **ON_MOJI | {"steps": 6})
    progress = journal.read(out)
    assert progress is not None and [step for step, _ in progress.losses] == [1, 2, 3, 4, 5, 6]


def test_a_run_of_another_process_is_watched_and_stopped(tmp_path):
    out = tmp_path / "run"
    words = ["customize", IMAGES / "teapot.png", "--class-name", "teapot", "--out", out, "--steps", "2000"]
    words += ["--no-preserve", "--sample-every", "0", "--batch-size", "1"]
    process = subprocess.Popen([sys.executable, "-m", "atomtune", *map(str, words)], stderr=subprocess.DEVNULL)
    end = time.monotonic() + 300
    while (found := journal.read(out)) is None or found.state != "training" or found.seconds_left is None:
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.1)
    assert found.running and 0 < found.step < found.steps == 2000 and "of 2000, about" in str(found)
    journal.stop(out)
    assert process.wait(60) == 130
    found = journal.read(out)
    assert found is not None and found.state == "stopped" and not found.running
    assert int(next((out / "checkpoints").glob("step-*")).name[5:]) == found.step


def write(out: Path, *entries: dict) -> None:
    (out / journal.FILE).parent.mkdir(parents=True)
    (out / journal.FILE).write_text("\n".join(map(json.dumps, entries)) + '\n{"step": 9, "lo')


def start(**other) -> dict:
    me = psutil.Process()
    return {"pid": os.getpid(), "born": me.create_time(), "host": platform.node(), "steps": 10} | other


def test_steps_trained_again_count_once_and_half_a_line_does_not(tmp_path):
    step = [{"step": n, "loss": float(n), "seconds": n} for n in range(1, 6)]
    write(tmp_path, start(born=0), *step, start(), step[2] | {"loss": 0.5}, step[3] | {"seconds": 5})
    found = journal.read(tmp_path)
    assert found is not None and found.losses == [(1, 1.0), (2, 2.0), (3, 0.5), (4, 4.0)]
    assert found.state == "training" and found.seconds_left == 6 * 2


@pytest.mark.parametrize("other", [{"born": 0}, {"pid": 2**22 + 1}, {"host": "elsewhere"}])
def test_another_process_of_that_number_is_not_the_run(tmp_path, other):
    write(tmp_path, start(**other))
    found = journal.read(tmp_path)
    assert found is not None and found.state == "stopped"


def test_a_folder_without_a_journal(tmp_path):
    assert journal.read(tmp_path) is None


def test_a_curve_has_few_points():
    found = journal.Progress("training", 1000, 1000, [(step, float(step)) for step in range(1, 1001)])
    assert len(found.curve(100)) == 100 and found.curve(100)[0] == (10, 5.5)
    assert found.curve(5000) == found.losses and journal.Progress("preparing").curve() == []


@pytest.mark.parametrize("seconds, words", [(None, ""), (12, ", about 12 s left"), (600, ", about 10 min left")])
def test_the_time_left_in_words(seconds, words):
    assert str(journal.Progress("training", 3, 9, seconds_left=seconds)) == f"training: step 3 of 9{words}"
