"""Two real processes train one adapter, as on two GPUs."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest


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
