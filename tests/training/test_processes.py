"""Two real processes train one adapter, as on two GPUs."""

import json
import os
import subprocess
import sys

import pytest


def train(processes: int, *arguments: str) -> None:
    """`atomtune customize` in `processes` processes, started as the how-to says."""
    launch = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m"]
    environment = os.environ | {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", *launch, "atomtune", "customize", *arguments]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.slow
def test_two_processes_train_one_adapter(base, pictures, tmp_path):
    options = ["--class-name", "dog", "--base", base, "--steps", "3", "--num-atoms", "8", "--sample-every", "0"]
    adapters = {}
    for processes in (1, 2):
        out = tmp_path / str(processes)
        train(processes, str(pictures), "--out", str(out), *options)
        assert json.loads((out / "summary.json").read_text())["steps"] == 3
        adapters[processes] = (out / "adapter" / "adapter_model.safetensors").read_bytes()
    assert adapters[1] != adapters[2]  # the second process took part
