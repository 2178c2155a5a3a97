"""Two real processes train one adapter, as on two GPUs."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch.testing import assert_close


def start(processes: int, *arguments: str) -> subprocess.Popen[str]:
    """`atomtune customize` in `processes` processes, started as the how-to says."""
    launch = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m"]
    environment = os.environ | {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", *launch, "atomtune", "customize", *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def train(processes: int, *arguments: str) -> None:
    """The same, to the end."""
    process = start(processes, *arguments)
    said = process.communicate()[1]
    assert process.returncode == 0, said


@pytest.mark.slow
def test_two_processes_train_one_adapter(base, images, tmp_path):
    options = ["--class-name", "dog", "--base", base, "--steps", "3", "--num-atoms", "8", "--sample-every", "0"]
    adapters = {}
    for processes in (1, 2):
        out = tmp_path / str(processes)
        train(processes, str(images), "--out", str(out), *options)
        assert json.loads((out / "summary.json").read_text())["steps"] == 3
        adapters[processes] = (out / "adapter" / "adapter_model.safetensors").read_bytes()
    assert adapters[1] != adapters[2]  # the second process took part


def processes_of(rank: int, out: Path) -> list[int]:
    """Ids of the processes of this rank that train into `out`."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it may end while we look, or not be ours
            command, environment = ((folder / name).read_bytes().split(b"\0") for name in ("cmdline", "environ"))
            if str(out).encode() in command and f"RANK={rank}".encode() in environment:
                found.append(int(folder.name))
    return found


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_at_one_step_and_they_continue_to_the_same_bits(base, images, tmp_path):
    options = ["--class-name", "dog", "--base", base, "--num-atoms", "8", "--checkpoint-every", "1000"]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    train(2, str(images), "--out", str(whole), *options, "--steps", "12", "--sample-every", "0")

    arguments = [str(images), "--out", str(stopped), *options, "--steps", "12", "--sample-every", "1"]
    process = start(2, *arguments)
    while process.poll() is None and not list(stopped.glob("samples/step-000001-*.png")):
        time.sleep(0.05)
    (second,) = processes_of(1, stopped)
    os.kill(second, signal.SIGINT)
    said = process.communicate(timeout=200)[1]
    last = [path.name for path in (stopped / "checkpoints").iterdir()]
    assert len(last) == 1 and last < ["step-000012"], said
    assert said.count("atomtune: stopped at step") == 1
    assert f"in 2 processes as before, goes on from step {int(last[0][5:])}." in said
    train(2, *arguments[:-1], "0")
    weights = [(out / "adapter" / "adapter_model.safetensors").read_bytes() for out in (whole, stopped)]
    assert weights[0] == weights[1]


@pytest.mark.slow
def test_two_processes_do_what_one_does_with_twice_the_batch(base, images, tmp_path, monkeypatch):
    """And a run may go on in another number of them, if a step takes as many images."""
    monkeypatch.setenv("ATOMTUNE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "others.txt").write_text("a red cat\nthe snow\n")
    options = [
        "--class-name", "dog", "--base", base, "--num-atoms", "8", "--sample-every", "0", "--caption-dropout", "0.3",
        "--lr-scheduler", "cosine", "--preserve", "--preserve-prompts", str(tmp_path / "others.txt"), "--floor", "1",
        "--preserve-share", "0.5", "--checkpoint-every", "3", "--report-to", "none",
    ]  # fmt: skip
    numbers, weights = {}, {}
    for name, starts in {"one": [(1, 4, 6)], "two": [(2, 2, 6)], "changed": [(2, 2, 3), (1, 4, 6)]}.items():
        for processes, batch, steps in starts:
            size = ["--batch-size", str(batch), "--steps", str(steps)]
            train(processes, str(images), "--out", str(tmp_path / name), *options, *size)
        numbers[name] = json.loads((tmp_path / name / "summary.json").read_text())
        weights[name] = load_file(tmp_path / name / "adapter" / "adapter_model.safetensors")
    for loss in ("loss", "held_loss"):
        assert numbers["two"][loss] == pytest.approx(numbers["one"][loss], rel=1e-5)
    for key, tensor in weights["two"].items():
        assert_close(tensor, weights["one"][key], atol=1e-5, rtol=1e-5, msg=key)
    levels = [tensor for key, tensor in weights["two"].items() if key.endswith("floor.levels")]
    assert levels and all((level >= 0).all() for level in levels)  # measured, and the same in both processes
    assert (numbers["changed"]["steps"], numbers["changed"]["processes"]) == (6, 1)
    with pytest.raises(AssertionError, match="a step takes 4 images there and 2 now"):
        train(1, str(images), "--out", str(tmp_path / "two"), *options, "--batch-size", "2", "--steps", "7")


@pytest.mark.slow
def test_a_killed_process_ends_the_other_with_a_sentence_and_they_go_on(base, images, tmp_path):
    out = tmp_path / "run"
    options = ["--class-name", "dog", "--base", base, "--num-atoms", "8", "--report-to", "none", "--sample-every", "0"]
    process = start(2, str(images), "--out", str(out), *options, "--steps", "4000", "--checkpoint-every", "2")
    while process.poll() is None and not list(out.glob("checkpoints/step-*")):
        time.sleep(0.05)
    (second,) = processes_of(1, out)
    os.kill(second, signal.SIGKILL)
    said = process.communicate(timeout=200)[1]
    assert process.returncode != 0
    sentence = re.search(
        r"atomtune: (another process of this run has ended|stopped at step).* goes on from step \d+", said
    )
    assert sentence, said[-3000:]
    last = int(sorted(path.name for path in (out / "checkpoints").iterdir())[-1][5:])
    train(2, str(images), "--out", str(out), *options, "--steps", str(last + 2), "--checkpoint-every", "2")
    assert json.loads((out / "summary.json").read_text())["steps"] == last + 2
