"""Was the subject learnt? The images that an adapter was trained on, and numbers that say how like them it draws.

On moji the judge compares the drawings of prompts that name the subject with these images. Other bases have no judge,
and neither have images that do not share one subject (a style): there the training loss on the images is measured
without and with the adapter, on the same noise, with which nothing was trained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from atomtune import bases
from atomtune.analysis.examples import training_examples
from atomtune.errors import UserError
from atomtune.moji.scenes import with_article
from atomtune.prompts import Subject
from atomtune.training import data
from atomtune.training.outcome import LITTLE_FIDELITY, learnt_little

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

WELL = 0.73  # fidelity that 95 in 100 images of one drawing have to each other (metrics/weights/judge.json)
NOISE, DRAWS = 1, 4  # seed of the noise of the losses, and draws of each image
SHOWN = 256  # pixels, largest side of a training image that is shown


@dataclass
class Learnt:
    """What an adapter was shown, and how well it learnt that."""

    images: list[tuple[Image.Image, str]] = field(default_factory=list)
    """The training images with their captions."""
    missing: str = ""
    """Why there are no images: a sentence."""
    numbers: dict[str, float] = field(default_factory=dict)
    """`fidelity`, of the base too as `fidelity_before`, `recognised` and `drawings` from the judge; or `held_loss` and
    `held_loss_before`."""
    class_name: str = ""
    token: str = ""
    each: dict[str, Learnt] = field(default_factory=dict)
    """The numbers of each subject ("sks teapot"), if there are several."""

    @property
    def little(self) -> bool:
        """Whether the subject, or one of several, was hardly learnt."""
        return learnt_little(self.numbers) is not None or any(one.little for one in self.each.values())

    @property
    def verdict(self) -> str:
        """One sentence, for each subject; empty without numbers."""
        if self.each:
            return " ".join(one.verdict.replace("This subject", f"“{name}”") for name, one in self.each.items())
        if self.little:
            return "This subject was hardly learnt."
        if "fidelity" in self.numbers:
            return (
                "This subject was learnt." if self.numbers["fidelity"] >= WELL else "This subject was learnt in part."
            )
        return "The adapter fits its images better than the base does." if self.numbers else ""

    def __str__(self) -> str:
        """The numbers in a sentence or two, for each subject; empty without numbers."""
        if self.each:
            return " ".join(f"{name}: {one}" for name, one in self.each.items())
        n = self.numbers
        if "fidelity" in n:
            said = (
                f"The drawings have a fidelity of {n['fidelity']:.2f} to the training images, and those of the base "
                f"{n['fidelity_before']:.2f}: 1 is the same drawing, about {LITTLE_FIDELITY:g} another drawing of the "
                "same thing, 0 another thing."
            )
            if "recognised" in n:
                said += (
                    f" The judge that measures this, a small network that knows 534 things, takes {n['recognised']} of "
                    f"{n['drawings']} drawings for {with_article(self.class_name)}."
                )
            return said
        if "held_loss" in n:
            return (
                f"The training loss on its images, with noise that it was not trained on, is {n['held_loss']:.3g}, and "
                f"{n['held_loss_before']:.3g} without the adapter."
            )
        return ""


@torch.no_grad()
def learnt(
    pipe: DiffusionPipeline,
    run: Mapping[str, Any] | None,
    drawn: Mapping[str, tuple[Image.Image, Image.Image]],
    subjects: Sequence[Subject] = (),
) -> Learnt:
    """How well the adapter on `pipe` learnt the images of its `run`, the settings of `customize` (None: not known).

    `drawn` has, for each prompt that names a subject, its image from the base and its image from the adapter. Where the
    folders of the images name several `subjects`, each is compared with its own images.
    """
    if run is None:
        return Learnt(missing="It is not known which images this adapter was trained on: no run is beside it.")
    folder, caption = Path(run["images"]), run.get("caption") or f"a {run.get('token', 'sks')} {run.get('class_name')}"
    try:
        found = data.find_examples(folder, caption)
        images = {file: data.read_image(file) for file in found}
        groups = data.by_subject(folder, found)
    except UserError as error:
        return Learnt(missing=f"The images that it was trained on are not there: {error}")
    shown = []
    for file, words in found.items():
        small = images[file].convert("RGB")
        small.thumbnail((SHOWN, SHOWN))
        shown.append((small, words))
    known = {str(subject): subject for subject in subjects}
    each, losses = {}, None
    for name, files in groups.items():
        subject = known.get(name) or (subjects[0] if len(groups) == 1 and subjects else None)
        own = {text: pair for text, pair in drawn.items() if len(groups) == 1 or (subject and subject.is_in(text))}
        class_name, numbers = subject.class_name if subject else "", None
        if pipe.name_or_path == bases.MOJI:
            numbers = _judged([images[file] for file in files], own, class_name)
        if numbers is None:
            losses = losses or _losses(pipe, folder, caption, run)
            places = [list(found).index(file) for file in files]
            numbers = {key: float(of[places].mean()) for key, of in losses.items()}
        token = subject.token if subject and name else run.get("token", "")
        each[name] = Learnt(numbers=numbers, class_name=class_name, token=token)
    if len(each) > 1:
        return Learnt(shown, each=each)
    (one,) = each.values()
    return replace(one, images=shown)


def _judged(
    images: Sequence[Image.Image], drawn: Mapping[str, tuple[Image.Image, Image.Image]], class_name: str
) -> dict[str, float] | None:
    """The judge's numbers; None where it cannot tell: nothing drawn, or images of different subjects."""
    from atomtune.metrics import load_judge
    from atomtune.metrics.judge import NAMES

    judge = load_judge()
    if not drawn or judge.fidelity(images, images).mean() < LITTLE_FIDELITY:
        return None
    before, after = (list(images) for images in zip(*drawn.values()))
    numbers = {
        "fidelity_before": float(judge.fidelity(before, images).mean()),
        "fidelity": float(judge.fidelity(after, images).mean()),
    }
    name = class_name.replace(" ", "-")
    if name in NAMES:
        ranks = judge.rank(after, [name] * len(after))
        numbers |= {"recognised": int((ranks == 0).sum()), "drawings": len(ranks)}
    return numbers


def _losses(pipe: DiffusionPipeline, images: Path, caption: str, run: Mapping[str, Any]) -> dict[str, Tensor]:
    """The training loss of each image [images] without and with the adapter, its mean over draws of noise."""
    options = {"resolution": run.get("resolution"), "alpha_mask": run.get("alpha_mask", False)}
    examples = training_examples(pipe, images, caption, DRAWS, NOISE, **options)

    def loss() -> Tensor:
        return torch.cat([one.losses() for one in examples.one_by_one()]).unflatten(0, (DRAWS, -1)).mean(0)

    denoiser: Any = bases.denoiser(pipe)
    with denoiser.disable_adapter():
        before = loss()
    return {"held_loss_before": before, "held_loss": loss()}
