"""Likeness: how much of what an adapter gained is left when it keeps fewer of its atoms.

    likeness = (q − q_0) / (q_M − q_0)

q is how well the images that were learnt are drawn, with the atoms that are kept; q_M with all M atoms, and q_0 without
any, which is the base. On moji q is the judge's fidelity to these images, of drawings of their captions. Other bases
have no judge: there q is minus the training loss on the images, with noise that nothing was trained or ranked with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor

from atomtune import bases, sampling
from atomtune.analysis.examples import Examples, training_examples
from atomtune.atoms import Layer
from atomtune.sizes import GivenSize
from atomtune.steering import AtomBoard, board
from atomtune.training import data

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

ENOUGH, LITTLE = 0.9, 0.7
"""The share of the likeness that a proposed number of atoms keeps, and the share below which no fewer are tried."""
DRAWINGS = 5  # at least so many images are drawn for one fidelity
NOISE = 1  # seed; importance is measured with 0


class Likeness:
    """Measures likeness, with the pipeline's atoms as they are when it is made (all of them, q_M) as the whole.

    `images` and `caption` are those of its run, see `training_examples`. Raises `UserError` if they cannot be read.
    """

    def __init__(
        self,
        pipe: DiffusionPipeline,
        images: Path,
        caption: str,
        resolution: GivenSize | None = None,
        alpha_mask: bool = False,
    ) -> None:
        judged = pipe.name_or_path == bases.MOJI
        self.quality = _fidelity(images, caption) if judged else _loss(pipe, images, caption, resolution, alpha_mask)
        self.whole = self.quality(pipe)
        atoms = board(pipe)
        with atoms.muted(*(Layer(dictionary).address for dictionary in atoms.dictionaries)):
            self.base = self.quality(pipe)
        self.known = self.whole - self.base > (0.05 if judged else 0)
        """Whether the adapter gained anything over the base, so that a share of it can be measured."""

    def __call__(self, pipe: DiffusionPipeline) -> float:
        """The likeness with the present dials of the pipeline's atoms: 1 as with all of them, 0 as without any."""
        return (self.quality(pipe) - self.base) / (self.whole - self.base)


@dataclass
class Rung:
    """One step of the ladder."""

    atoms: int
    likeness: float


def halvings(atoms: AtomBoard, scores: Sequence[Tensor], measure: Callable[[], float]) -> list[Rung]:
    """`measure` with the best half of the atoms by their scores, the best quarter and so on, until `LITTLE` is left."""
    rungs, count = [], len(atoms) // 2
    while count and (not rungs or rungs[-1].likeness >= LITTLE):
        rungs.append(Rung(count, with_best(atoms, count, scores, measure)))
        count //= 2
    return rungs


def with_best(
    atoms: AtomBoard, count: int, scores: Sequence[Tensor], measure: Callable[[], float], per_layer: bool = False
) -> float:
    """`measure` while only the best atoms by their scores are kept; afterwards all of them are."""
    try:
        atoms.keep(count, scores, per_layer)
        return measure()
    finally:
        for dictionary in atoms.dictionaries:
            dictionary.keep_only(None)


def proposal(rungs: Sequence[Rung]) -> Rung | None:
    """The fewest atoms that keep `ENOUGH` of the likeness, as all larger numbers of the ladder do; None if half of the
    atoms keep less than that."""
    enough = list(takewhile(lambda rung: rung.likeness >= ENOUGH, rungs))
    return enough[-1] if enough else None


def _fidelity(images: Path, caption: str) -> Callable[[DiffusionPipeline], float]:
    from atomtune.metrics import load_judge

    found, judge = data.find_examples(images, caption), load_judge()
    groups = []
    for files in data.by_subject(images, found).values():  # each subject is compared with its own images
        prompts = list(dict.fromkeys(found[file] for file in files))[:DRAWINGS]
        groups.append((prompts, [data.read_image(file) for file in files]))

    def fidelity(pipe: DiffusionPipeline, prompts: Sequence[str], references: Sequence[Image.Image]) -> float:
        drawings = sampling.generate(pipe, prompts, -(-DRAWINGS // len(prompts)))
        return float(judge.fidelity([drawing.image for drawing in drawings], references).mean())

    return lambda pipe: mean(fidelity(pipe, *group) for group in groups)


def _loss(
    pipe: DiffusionPipeline, images: Path, caption: str, resolution: GivenSize | None, alpha_mask: bool
) -> Callable[[DiffusionPipeline], float]:
    examples = training_examples(pipe, images, caption, seed=NOISE, resolution=resolution, alpha_mask=alpha_mask)
    noised, conditionings = examples.noised, examples.conditionings  # without the pipeline, which may be closed

    @torch.no_grad()
    def quality(pipe: DiffusionPipeline) -> float:
        each = [one.losses() for one in Examples(pipe, noised, conditionings).one_by_one()]
        return -float(torch.cat(each).mean())

    return quality
