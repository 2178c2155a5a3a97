"""What a finished run says of itself: how well it learnt, one sheet of images, and the command to type next."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from atomtune import bases, manifest, sampling
from atomtune.prompts import without_tokens
from atomtune.shell import command_line
from atomtune.training.config import CustomizeConfig
from atomtune.training.encoding import Cache, predict
from atomtune.training.objectives import Objective, prediction_loss

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
) -> dict[str, float]:
    """The mean loss without the adapter, `held_loss_before`, and with it, `held_loss`, on the same noise and timesteps
    for both, from `generator` (CPU): `HELD_DRAWS` of them, over the images in turn."""
    index = [place % len(cache.conditionings) for place in range(HELD_DRAWS)]
    batches = []
    for size in dict.fromkeys(cache.sizes):  # a batch has one
        own = [i for i in index if cache.sizes[i] == size]
        noised = objective.add_noise(cache.latents.draw(own, generator), generator)
        noised = replace(noised, mask=cache.latents.masks(own))
        parts = [slice(first, first + batch_size) for first in range(0, len(own), batch_size)]
        batches += [(noised.rows(part), [cache.conditionings[i] for i in own[part]]) for part in parts]

    def loss() -> float:
        losses = []
        for part, conditionings in batches:
            part = part.to(device)
            losses.append(prediction_loss(predict(model, part, conditionings, dtype, cache.family), part))
        return round(float(torch.cat(losses).mean()), 6)

    with model.disable_adapter():
        before = loss()
    return {"held_loss_before": before, "held_loss": loss()}


def judged(config: CustomizeConfig, files: Sequence[str], references: Sequence[Image.Image]) -> dict[str, float]:
    """On moji, the judge's mean fidelity and alignment of the samples in `files`; on other bases nothing."""
    if config.base != bases.MOJI:
        return {}
    from atomtune.metrics import load_judge

    judge, images = load_judge(), [sampling.read_image(file) for file in files]
    prompts = [without_tokens(sampling.read_settings(file)["prompt"], [config.token]) for file in files]
    fidelity, alignment = judge.fidelity(images, references), judge.alignment(images, prompts)
    return {"fidelity": round(float(fidelity.mean()), 3), "alignment": round(float(alignment.mean()), 3)}


def contact_sheet(out: Path, images: Sequence[Image.Image], last: Sequence[str]) -> Image.Image:
    """The training images, then a row for each prompt of the samples in `last`, with all its samples in `out` by step.

    Of many steps `STEPS_SHOWN` are shown, evenly.
    """
    rows, labels = [[_small(image) for image in images[:STEPS_SHOWN]]], ["images"]
    files = [out / entry for entry in sorted(manifest.written(out)) if re.fullmatch(r"samples/step-.*\.png", entry)]
    settings = {file: sampling.read_settings(file) for file in files if file.is_file()}
    for prompt in [settings[Path(file)]["prompt"] for file in last]:
        drawn = {own["step"]: file for file, own in settings.items() if own["prompt"] == prompt}
        stride = -(-len(drawn) // STEPS_SHOWN)
        shown = sorted(drawn, reverse=True)[::stride][::-1]
        rows.append([_small(sampling.read_image(drawn[step])) for step in shown])
        labels.append(f"{prompt}, after {', '.join(map(str, shown))} steps")
    return sampling.grid(rows, labels)


def _small(image: Image.Image) -> Image.Image:
    image = image.copy()
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    return image


def next_command(config: CustomizeConfig, backgrounds: Sequence[str]) -> str:
    """A command that draws what was learnt, where possible with a prompt that the samples did not show."""
    prompt = config.prompts(backgrounds)[-1]
    size = [] if config.resolution is None else ["--resolution", config.resolution]
    return command_line("generate", config.out, "--prompt", prompt, "--num", 4, *size)


def told(summary: dict[str, Any], out: Path) -> list[str]:
    """The lines that the command line prints about a finished run, from its `summary.json`."""
    sheet = f", and its samples are on {out / SHEET}" if (out / SHEET).is_file() else ""
    lines = [f"The adapter is in {out / 'adapter'}{sheet}."]
    learnt = []
    if "fidelity" in summary:
        learnt.append(
            f"fidelity to the images {summary['fidelity']:.2f} (1: the same drawing, 0: another subject), alignment "
            f"with the prompts {summary['alignment']:.2f} (a real drawing: about 0.7)"
        )
    if "held_loss" in summary:
        learnt.append(
            f"loss on noise that was not trained on {summary['held_loss']:.3g}, and {summary['held_loss_before']:.3g} "
            "without the adapter"
        )
    if learnt:
        lines.append(f"How well it learnt: {'; '.join(learnt)}.")
    if why := learnt_little(summary):
        steps = ["--steps", 2 * summary["steps"]]
        again = command_line("customize", "--config", out / "config.yaml", "--out", out, *steps)
        advice = f"more steps help, `{again}` goes on; else try a higher --learning-rate in another folder."
        lines.append(f"It learnt little ({why}): {' '.join(summary.get('misfits', [advice]))}")
    if "next_command" in summary:
        lines.append(f"Now try: {summary['next_command']}")
    return lines


def learnt_little(summary: dict[str, Any]) -> str | None:
    """Why a run seems to have learnt little, or None."""
    if summary.get("fidelity", 1) < LITTLE_FIDELITY:
        return f"fidelity is below {LITTLE_FIDELITY:g}"
    if "held_loss" in summary and summary["held_loss"] > (1 - LITTLE_FALL) * summary["held_loss_before"]:
        return f"the loss fell by less than {LITTLE_FALL:.0%}"
    return None
