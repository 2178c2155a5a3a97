"""As many parameters as a LoRA has: `python -m experiments --only six_subjects`

Six subjects that moji has never seen (`experiments.common.subjects`), two seeds of the training, beside
self-attention as in the paper (the recipe moji-paper):
a LoRA of rank 16, atoms with as many parameters, and the recipe's atoms with four times as many.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import atomtune
from experiments.common import subjects
from experiments.common.cells import read, shown
from experiments.common.report import table

HERE = Path(__file__).parent
SEEDS, NUM = (0, 1), 4
METHODS: dict[str, tuple[str, dict[str, Any]]] = {  # name of the cells: heading, options of `customize`
    "lora": ("LoRA, rank 16", {"method": "lora"}),
    "atoms-64": ("64 atoms a layer", {"num_atoms": 64, "density": 10 / 64}),
    "atoms": ("256 atoms a layer", {}),
}
ROWS = {  # value: label, its digits
    "parameters": ("trained parameters", 0),
    "megabytes": ("adapter on disk, MB", 2),
    "fidelity": ("fidelity to the five images", 2),
    "alignment": ("alignment with the prompt", 2),
    "background": ("share with the background asked for", 2),
    "diversity": (f"diversity, of {NUM} images of a prompt", 2),
}


@dataclass(frozen=True)
class Config:
    """One cell: a subject, what is put on the base, and the seed of the training."""

    name: str
    options: dict[str, Any] | None = field(default=None)
    """Options of `customize`; None for the base alone."""
    seed: int = 0

    @property
    def settings(self) -> dict[str, Any]:
        return {"base": subjects.weights_digest(), "name": self.name, "options": self.options, "seed": self.seed}


def measure(config: Config) -> dict[str, Any]:
    pipe, learnt = subjects.moji(), {}
    if config.options is not None:
        run, numbers = subjects.train(config.name, seed=config.seed, **config.options)
        atomtune.load_adapter(pipe, run)
        learnt = {"parameters": numbers["trainable_parameters"], "megabytes": numbers["adapter_bytes"] / 1e6}
    return learnt | subjects.score(subjects.draw(pipe, config.name, NUM), config.name)


def grid(quick: bool = False) -> dict[str, Config]:
    """There is no small slice: every cell trains an adapter."""
    if quick:
        return {}
    bases = {f"{name}-base": Config(name) for name in subjects.SUBJECTS}
    return bases | {
        f"{name}-{method}-{seed}": Config(name, options, seed)
        for seed in SEEDS
        for name in subjects.SUBJECTS
        for method, (_, options) in METHODS.items()
    }


def values(found: dict[str, Any], method: str, score: str) -> np.ndarray:
    """[subjects × seeds]."""
    cells = [f"{name}-{method}" for name in subjects.SUBJECTS]
    if method in METHODS:
        cells = [f"{cell}-{seed}" for cell in cells for seed in SEEDS]
    return np.array([found[cell][score] for cell in cells if cell in found and score in found[cell]])


def results(out: Path = HERE) -> str:
    found = read(out)
    heads = {"base": "base", **{method: title for method, (title, _) in METHODS.items()}}
    rows = [
        [label, *(shown(values(found, method, score), digits) for method in heads)]
        for score, (label, digits) in ROWS.items()
    ]
    return table(["", *heads.values()], rows)
