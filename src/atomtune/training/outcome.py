"""What a finished run says of itself: how well it learnt, one sheet of images, and the command to type next."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from atomtune import bases, manifest, sampling
from atomtune.prompts import Subject, without_tokens
from atomtune.shell import command_line
from atomtune.training.config import CustomizeConfig
from atomtune.training.encoding import Cache, predict
from atomtune.training.objectives import Noised, Objective, prediction_loss
from atomtune.training.subjects import Shown

SHEET = "samples.png"
THUMBNAIL = 256  # pixels, largest side of an image on the sheet
STEPS_SHOWN = 6
HELD_DRAWS = 24
# On moji, five images of a teapot: after 5 steps the loss has fallen by 4 % and fidelity is -0.14, after 20 by 31 % and
# -0.08, after 50 by 76 % and 0.69, after 250 by 93 % and 0.88.
LITTLE_FIDELITY = 0.5
LITTLE_FALL = 0.05  # of the held loss; how far it falls differs from base to base, so this tells only the plain cases


@torch.no_grad()
def held_losses(
    model: Any,
    objective: Objective,
    cache: Cache,
    generator: torch.Generator,
    batch_size: int,
    device: torch.device,
    dtype: torch.dtype,
) -> dict[str, Any]:
    """The mean loss without the adapter, `held_loss_before`, and with it, `held_loss`, on the same noise and timesteps
    for both, of `examples_in_turn`. Of several subjects those of each too, as `by_subject`."""
    shown = cache.shown
    groups = range(len(shown.subjects))
    batches = examples_in_turn(objective, cache, generator, batch_size)
    order = [shown.of[image] for images, _ in batches for image in images]

    def loss() -> Tensor:
        losses = []
        for images, part in batches:
            part = part.to(device)
            conditionings = [cache.conditionings[image] for image in images]
            losses.append(prediction_loss(predict(model, part, conditionings, dtype, cache.family), part))
        return torch.cat(losses)

    with model.disable_adapter():
        losses = {"held_loss_before": loss()}
    losses["held_loss"] = loss()

    def means(chosen: Any) -> dict[str, float]:
        return {name: round(float(each[chosen].mean()), 6) for name, each in losses.items()}

    places = [[place for place, subject in enumerate(order) if subject == number] for number in groups]
    return means(slice(None)) | _by_subject(shown, [means(own) for own in places])


def examples_in_turn(
    objective: Objective, cache: Cache, generator: torch.Generator, batch_size: int
) -> list[tuple[list[int], Noised]]:
    """Batches of images, of one size each, and their noised examples: `HELD_DRAWS` in all at least, over the images
    in turn, with noise and timesteps from `generator` (CPU)."""
    shown = cache.shown
    groups = [shown.images_of(number) for number in range(len(shown.subjects))]
    turns = [groups[place % len(groups)] for place in range(max(HELD_DRAWS, len(groups)))]
    index = [own[place // len(groups) % len(own)] for place, own in enumerate(turns)]
    batches = []
    for size in dict.fromkeys(cache.sizes):
        own = [i for i in index if cache.sizes[i] == size]
        noised = objective.add_noise(cache.latents.draw(own, generator), generator)
        noised = replace(noised, mask=cache.latents.masks(own))
        parts = [slice(first, first + batch_size) for first in range(0, len(own), batch_size)]
        batches += [(own[part], noised.rows(part)) for part in parts]
    return batches


def judged(
    config: CustomizeConfig, shown: Shown, files: Sequence[str], references: Sequence[Image.Image]
) -> dict[str, Any]:
    """On moji, the judge's mean fidelity and alignment of the samples in `files`; on other bases nothing.

    Of several subjects each sample is compared with the images of the one that its prompt names, and the means of each
    subject are under `by_subject` too. Samples whose prompts name none of them or several have no fidelity.
    """
    if config.base != bases.MOJI:
        return {}
    from atomtune.metrics import load_judge

    judge, images = load_judge(), [sampling.read_image(file) for file in files]
    prompts = [sampling.read_settings(file)["prompt"] for file in files]
    tokens = [subject.token for subject in shown.subjects]
    scores = {"alignment": judge.alignment(images, [without_tokens(prompt, tokens) for prompt in prompts])}
    scores["fidelity"], of = np.full(len(files), np.nan), [shown.subject_in(prompt) for prompt in prompts]
    places = [[place for place, subject in enumerate(of) if subject == number] for number in range(len(tokens))]
    for number, own in enumerate(places):
        if own:
            learnt = [references[image] for image in shown.images_of(number)]
            scores["fidelity"][own] = judge.fidelity([images[place] for place in own], learnt)

    def means(chosen: Any) -> dict[str, float]:
        known = {name: each[chosen][~np.isnan(each[chosen])] for name, each in scores.items()}
        return {name: round(float(each.mean()), 3) for name, each in known.items() if len(each)}

    return means(slice(None)) | _by_subject(shown, [means(own) for own in places])


def _by_subject(shown: Shown, each: Sequence[dict[str, float]]) -> dict[str, Any]:
    """The numbers of each subject, where there are several."""
    return {"by_subject": dict(zip(map(str, shown.subjects), each))} if shown.several else {}


def joined(numbers: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """Both, with those of each subject together."""
    of, others = numbers.get("by_subject", {}), more.get("by_subject", {})
    both = {name: of.get(name, {}) | others[name] for name in others}
    return numbers | more | ({"by_subject": both} if both else {})


def contact_sheet(out: Path, shown: Shown, images: Sequence[Image.Image], last: Sequence[str]) -> Image.Image:
    """The training images, a row for each subject, then a row for each prompt of the samples in `last`, with all its
    samples in `out` by step.

    Of many steps `STEPS_SHOWN` are shown, evenly.
    """
    rows, labels = [], []
    for number, subject in enumerate(shown.subjects):
        rows.append([_small(images[image]) for image in shown.images_of(number)[:STEPS_SHOWN]])
        labels.append(f"images of {subject}" if shown.several else "images")
    files = [out / entry for entry in sorted(manifest.written(out)) if re.fullmatch(r"samples/step-.*\.png", entry)]
    settings = {file: sampling.read_settings(file) for file in files if file.is_file()}
    for prompt in [settings[Path(file)]["prompt"] for file in last]:
        drawn = {own["step"]: file for file, own in settings.items() if own["prompt"] == prompt}
        stride = -(-len(drawn) // STEPS_SHOWN)
        steps = sorted(drawn, reverse=True)[::stride][::-1]
        rows.append([_small(sampling.read_image(drawn[step])) for step in steps])
        labels.append(f"{prompt}, after {', '.join(map(str, steps))} steps")
    return sampling.grid(rows, labels)


def _small(image: Image.Image) -> Image.Image:
    image = image.copy()
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    return image


def next_command(config: CustomizeConfig, subjects: Sequence[Subject]) -> str:
    """A command that draws what was learnt, where possible with prompts that the samples did not show."""
    prompts = [word for subject in subjects for word in ("--prompt", config.prompts(subject)[-1])]
    size = [] if config.resolution is None else ["--resolution", config.resolution]
    return command_line("generate", config.out, *prompts, "--num", 4, *size)


def told(summary: dict[str, Any], out: Path) -> list[str]:
    """The lines that the command line prints about a finished run, from its `summary.json`."""
    sheet = f", and its samples are on {out / SHEET}" if (out / SHEET).is_file() else ""
    lines = [f"The adapter is in {out / 'adapter'}{sheet}."]
    each = summary.get("by_subject", {})
    for subject, numbers in each.items() or [("", summary)]:
        if learnt := _learnt(numbers):
            lines.append(f"How well it learnt{subject and f' {subject!r}'}: {'; '.join(learnt)}.")
    if why := learnt_little(summary):
        steps = ["--steps", 2 * summary["steps"]]
        again = command_line("customize", "--config", out / "config.yaml", "--out", out, *steps)
        advice = f"more steps help, `{again}` goes on; else try a higher --learning-rate in another folder."
        lines.append(f"It learnt little ({why}): {' '.join(summary.get('misfits', [advice]))}")
    if "next_command" in summary:
        lines.append(f"Now try: {summary['next_command']}")
    return lines


def _learnt(numbers: dict[str, Any]) -> list[str]:
    """What the numbers of one subject mean."""
    learnt = []
    if "fidelity" in numbers:
        learnt.append(f"fidelity to the images {numbers['fidelity']:.2f} (1: the same drawing, 0: another subject)")
    if "alignment" in numbers:
        learnt.append(f"alignment with the prompts {numbers['alignment']:.2f} (a real drawing: about 0.7)")
    if "held_loss" in numbers:
        learnt.append(
            f"loss on noise that was not trained on {numbers['held_loss']:.3g}, and {numbers['held_loss_before']:.3g} "
            "without the adapter"
        )
    return learnt


def learnt_little(summary: dict[str, Any]) -> str | None:
    """Why a run seems to have learnt little, of all or of some of its subjects, or None."""
    each = {subject: learnt_little(numbers) for subject, numbers in summary.get("by_subject", {}).items()}
    if little := [f"of {subject!r} {why}" for subject, why in each.items() if why]:
        return ", ".join(little)
    if summary.get("fidelity", 1) < LITTLE_FIDELITY:
        return f"fidelity is below {LITTLE_FIDELITY:g}"
    if "held_loss" in summary and summary["held_loss"] > (1 - LITTLE_FALL) * summary["held_loss_before"]:
        return f"the loss fell by less than {LITTLE_FALL:.0%}"
    return None
