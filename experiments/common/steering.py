"""What the experiments on weighing and steering share: adapters of the six subjects, opened on moji, and examples.

A cell is one subject and one method. Its settings hold a digest of the base's weights, so that other weights run it
again.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from scipy.stats import spearmanr

import atomtune
from atomtune.analysis.examples import Examples, training_examples
from atomtune.bases import set_denoiser
from atomtune.lora.conversion import lora_to_atoms
from atomtune.steering import AtomBoard
from experiments.common import subjects

METHODS = {"atoms": "atoms", "lora": "LoRA", "principal": "LoRA, singular directions"}
"""`principal` is the same LoRA, its product BA split along its singular directions (`atomtune.lora.conversion`)."""


@dataclass(frozen=True)
class Setup:
    """What is opened, on how much it is weighed. `QUICK` is a slice that shows only that everything works."""

    names: tuple[str, ...] = subjects.SUBJECTS
    draws: int = 4
    """Noise and timestep draws of each of the five pictures, for importance and stability."""
    ablated: int = 25
    """Atoms of each layer that are left out one by one."""
    timesteps: int = 4
    """Calls (one picture, different noise and timesteps) on which influence is measured."""
    counts: tuple[int, ...] = (4, 12, 40, 120)
    num: int = 4
    """Pictures of each of the five prompts, when fidelity is measured."""
    steps: int = 10
    """Sampling steps for them."""
    train: tuple[tuple[str, Any], ...] = ()
    """Further options of training."""


FULL = Setup()
QUICK = Setup(("teapot",), 1, 3, 1, (4,), 1, 2, (("steps", 3), ("num_atoms", 32), ("rank", 2)))


def setup_of(quick: bool) -> Setup:
    return QUICK if quick else FULL


@dataclass(frozen=True)
class Config:
    """One cell."""

    setup: Setup
    name: str
    """The subject."""
    used: tuple[str, ...]
    """The fields of the setup that it depends on, beside the options of training."""
    method: str = "atoms"

    @property
    def settings(self) -> dict[str, Any]:
        fields = {key: value for key, value in asdict(self.setup).items() if key in (*self.used, "train")}
        return {"base": subjects.weights_digest()} | fields


@dataclass
class Opened:
    """A pipeline with an adapter in it."""

    pipe: Any
    board: AtomBoard
    run: Path
    name: str

    def examples(self, draws: int) -> Examples:
        """All five pictures."""
        return training_examples(self.pipe, self.run.parent / "pictures", f"a {subjects.TOKEN} {self.name}", draws)

    def one_picture(self, draws: int) -> Examples:
        """The first picture alone, with `draws` noises and timesteps."""
        picture = self.run.parent / "pictures" / "0.png"
        return training_examples(self.pipe, picture, f"a {subjects.TOKEN} {self.name}", draws)


def opened(setup: Setup, name: str, method: str = "atoms", seed: int = 0) -> Opened:
    """Train (or find) the adapter and open it; a LoRA comes as atoms."""
    lora = {} if method == "atoms" else {"method": "lora"}
    run, _ = subjects.train(name, seed=seed, **lora, **dict(setup.train))
    pipe = subjects.moji()
    model = atomtune.load_adapter(pipe, run)
    if lora:
        set_denoiser(pipe, lora_to_atoms(model, principal=method == "principal"))
    return Opened(pipe, atomtune.board(pipe), run, name)


def score_current(it: Opened, setup: Setup) -> dict[str, float]:
    """Draw with the dials as they are, and judge."""
    return subjects.score(subjects.draw(it.pipe, it.name, setup.num, steps=setup.steps), it.name)


def rank_agreement(one: Sequence[float], other: Sequence[float]) -> float:
    """Spearman's rank correlation."""
    result: Any = spearmanr(one, other)
    return float(result.statistic)
