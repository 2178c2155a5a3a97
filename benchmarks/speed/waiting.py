"""Seconds of training steps of moji in a process of its own, as JSON: `python -m benchmarks.speed.waiting`. How threads
wait for one another is read from the environment when torch is imported."""

import json

import torch

from benchmarks.speed.measuring import seconds, steps_of
from benchmarks.speed.models import CASES

if __name__ == "__main__":
    step = steps_of(CASES["moji"], torch.device("cpu"), torch.float32, ["linear"])["linear"]
    print(json.dumps([seconds(step.train, torch.device("cpu")) for _ in range(25)][5:]))
