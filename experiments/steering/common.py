"""What the steering experiments share: adapters of the six things, opened on moji, and examples to weigh them on.

A cell is one thing and one method. Its settings hold a digest of the base's weights, so that other weights run it
again.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from scipy.stats import spearmanr

import atomtune
from atomtune.analysis.examples import Examples, training_examples
from atomtune.bases import set_denoiser
from atomtune.lora.conversion import lora_to_atoms
from atomtune.steering import AtomBoard
from experiments import subjects
from experiments.cells import cell, read
from experiments.report import ROOT

RESULTS = Path(__file__).parent / "results"
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
QUICK = Setup(("teapot",), 1, 2, 1, (4,), 1, 2, (("steps", 3), ("num_atoms", 32), ("rank", 2)))


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
    pipe = atomtune.load_base("moji")
    model = atomtune.load_adapter(pipe, run)
    if lora:
        set_denoiser(pipe, lora_to_atoms(model, principal=method == "principal"))
    return Opened(pipe, atomtune.board(pipe), run, name)


def score_as_it_is(it: Opened, setup: Setup) -> dict[str, float]:
    """Draw with the dials as they are, and judge."""
    return subjects.score(subjects.draw(it.pipe, it.name, setup.num, steps=setup.steps), it.name)


def run_cell(
    setup: Setup, experiment: str, label: str, used: tuple[str, ...], compute: Callable[[], Mapping[str, Any]]
) -> None:
    """One JSON file in results/EXPERIMENT, for these weights and the fields of the setup that it uses."""
    settings = {key: value for key, value in asdict(setup).items() if key in (*used, "train")}
    folder = results(setup) / experiment
    cell(folder / f"{label}.json", {"base": subjects.weights_digest(), "cell": label} | settings, compute)


def rank_agreement(one: Sequence[float], other: Sequence[float]) -> float:
    """Spearman's rank correlation."""
    result: Any = spearmanr(one, other)
    return float(result.statistic)


def results(setup: Setup) -> Path:
    """Where the cells of a setup are."""
    return RESULTS if setup == FULL else subjects.CACHE / "steering-quick" / "results"


@dataclass(frozen=True)
class Place:
    """Where cells are read, and where the page and its figures go."""

    results: Path = RESULTS
    docs: Path = ROOT / "docs" / "results"

    def cells(self, experiment: str) -> dict[str, dict[str, Any]]:
        """The cells of one experiment, by label; none when it has not run."""
        return read(self.results / experiment)

    def figure(self, name: str) -> Path:
        return self.docs / "figures" / f"steering-{name}.png"


def main(run: Callable[[Setup], None], figure: Callable[[Place], None]) -> None:
    """The command of one experiment: `--quick` shows that it works, into the cache folder."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="a small slice whose numbers mean nothing")
    setup = QUICK if parser.parse_args().quick else FULL
    run(setup)
    figure(place(setup))


def place(setup: Setup) -> Place:
    """The repository's own for the full setup."""
    return Place() if setup == FULL else Place(results(setup), results(setup).parent)
