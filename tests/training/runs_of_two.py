"""Run by test_processes.py in each of two processes: the runs of a JSON file, one after the other.

Each run is a dict of options of `customize`, and `environment`: what accelerate's environment asks for.
"""

import json
import os
import sys
from pathlib import Path

from torch.distributed.tensor import DTensor

sys.path.insert(0, str(Path(__file__).parents[2]))

import atomtune
from atomtune.training import run
from atomtune.training.trainer import Trainer


class Watched(Trainer):
    """Writes what this process holds of the base and of the adapter: numbers here, and numbers of all."""

    def finish(self):
        held = {"frozen": [0, 0], "trained": [0, 0]}
        for parameter in self.model.parameters():
            own = parameter.to_local() if isinstance(parameter, DTensor) else parameter
            if not parameter.requires_grad:  # else DeepSpeed has no part in it
                own = getattr(parameter, "ds_tensor", own)
            counts = held["trained" if parameter.requires_grad else "frozen"]
            counts[0] += own.numel()
            counts[1] += getattr(parameter, "ds_numel", parameter.numel())
        summary = super().finish()
        file = self.config.out / f"held-{self.accelerator.process_index}.json"
        file.write_text(json.dumps(held))
        return summary


run.Trainer = Watched
for options in json.loads(Path(sys.argv[1]).read_text()):
    environment = options.pop("environment")
    os.environ |= environment
    atomtune.customize(**options)
    for variable in environment:
        del os.environ[variable]
