"""What helps moji from here on? Each idea goes on from the committed weights: `python -m experiments.moji.onward`.

Every idea sees `IMAGES` more images (twenty minutes of one core) on one thread, after the same warm-up, with the same
first draws. Two running averages of its weights, a short and a long one, are then judged: squared error on 512 held-out
draws whose captions say everything, as prompts do, and 400 prompts drawn. An idea's state is in the cache: a kill costs
`SAVE_EVERY` images, and pretraining can go on from the last one. One cell an idea in results/.

The rule, fixed before the runs: an idea is adopted when names and styles together are at least three points above going
on as before (the same average), names not more than two points below, and held-out loss not more than 1 % above.
"""

import argparse
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import PixArtTransformer2DModel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from atomtune.moji.pipeline import WEIGHTS, assemble
from atomtune.moji.scenes import Mix
from experiments.cells import cell, read
from experiments.moji.trials import held_out
from experiments.report import table
from pretraining import CACHE, state, transformer
from pretraining.__main__ import SETTINGS
from pretraining.batches import Batches
from pretraining.evaluate import draw, scenes, score
from pretraining.transformer import AVERAGE, BATCH, LEARNING_RATE, WARMUP

HERE = Path(__file__).parent / "results"
IMAGES, PROMPTS, SAVE_EVERY = 57_600, 400, 100 * BATCH
HELD_OUT = range(10**9, 10**9 + 512 // BATCH)  # the numbers of batches that no training comes to
EVERYTHING_SAID = Mix(style_said=1.0)
AVERAGES = {"short": AVERAGE, "long": 0.9998}


@dataclass(frozen=True)
class Idea:
    """One change of how training goes on."""

    title: str
    mix: Mix = field(default_factory=Mix)
    batch: int = BATCH
    cooldown: float = 0.0
    """Last share of the images over which the learning rate falls to zero."""


IDEAS = {
    "as-before": Idea("going on as before"),
    "styles": Idea("19 of 20 captions say the style", Mix(style_said=0.95)),
    "off-center": Idea("half of the scenes off the center or of another size", Mix(centered=0.35)),
    "batch-128": Idea("batch 128", batch=128),
    "cooldown": Idea("the learning rate falls to zero over the last half", cooldown=0.5),
}


def learning_rate(idea: Idea, images: int) -> float:
    risen = (images + idea.batch) / (WARMUP * BATCH)
    falls = (IMAGES - images) / (idea.cooldown * IMAGES) if idea.cooldown else 1.0
    return LEARNING_RATE * min(1.0, risen, falls)


def measure(idea: Idea, name: str) -> dict[str, Any]:
    """Train on, and judge both averages."""
    torch.manual_seed(0)
    vae = transformer.trained_autoencoder()
    batches, asked = Batches(vae, idea.mix), Batches(vae, EVERYTHING_SAID)
    model = PixArtTransformer2DModel.from_pretrained(WEIGHTS / "transformer", torch_dtype=torch.float32, variant="fp16")
    averages = {key: AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay)) for key, decay in AVERAGES.items()}
    optimizer, file, start = transformer.optimizer(model), CACHE / f"onward-{name}.pt", 0
    parts: dict[str, Any] = {"model": model, "optimizer": optimizer, **averages}
    if (saved := state.load(file)) is not None:
        start = saved["images"]
        for key, part in parts.items():
            part.load_state_dict(saved[key])
    transformer.prepare(model)
    for images in range(start, IMAGES, idea.batch):
        batch = batches(images // idea.batch, idea.batch)
        loss = (transformer.predict(model, batch) - batch.target).square().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(idea, images)
        optimizer.step()
        optimizer.zero_grad()
        for average in averages.values():
            average.update_parameters(model)
        if (images + idea.batch) % SAVE_EVERY == 0:
            state.save(file, images=images + idea.batch, **{key: part.state_dict() for key, part in parts.items()})
            print(f"{name}: {images + idea.batch:,} images, loss {loss.item():.4f}", flush=True)
    drawn, wanted = [asked(number, BATCH) for number in HELD_OUT], scenes(batches.drawings, PROMPTS, False)
    values: dict[str, Any] = {}
    for key, average in averages.items():
        pipe: Any = assemble(average.module.eval(), vae)  # pyright: ignore[reportArgumentType]
        pipe.set_progress_bar_config(disable=True)
        values[key] = {"loss": held_out(pipe.transformer, drawn)} | score(draw(pipe, wanted), wanted)
        print(f"{name}, {key} average: {values[key]}", flush=True)
    return values


def adopted(values: dict[str, Any], before: dict[str, Any]) -> bool:
    """The rule at the head of this module, on the short average of both."""
    gain = sum(values[key] - before[key] for key in ("name_first", "style"))
    return (
        gain >= 0.03 and values["name_first"] >= before["name_first"] - 0.02 and values["loss"] <= 1.01 * before["loss"]
    )


def done() -> dict[str, dict[str, Any]]:
    found = read(HERE)
    return {name: found[f"onward-{name}"] for name in IDEAS if f"onward-{name}" in found}


def onward_table() -> str:
    """Markdown: a row for each idea and average."""
    results = done()
    rows = []
    for name, values in results.items():
        for key, one in values.items():
            verdict = "adopted" if adopted(one, results["as-before"][key]) else "–"
            shares = [f"{one[score]:.1%}" for score in ("name_first", "style", "background", "place")]
            rows.append((IDEAS[name].title, f"{AVERAGES[key]}", f"{one['loss']:.4f}", *shares, verdict))
    return table(("", "average", "held-out loss", "names", "styles", "background", "place", "verdict"), rows)


def main(names: list[str]) -> None:
    """Run what is missing."""
    if not SETTINGS.items() <= os.environ.items():  # as in pretraining; they hold from a process's start on
        os.execve(sys.executable, sys.orig_argv, os.environ | SETTINGS)
    torch.set_num_threads(1)
    for name in names or IDEAS:
        idea = IDEAS[name]
        settings = {"images": IMAGES, "prompts": PROMPTS, "batch": idea.batch, "cooldown": idea.cooldown}
        settings |= vars(idea.mix)
        cell(HERE / f"onward-{name}.json", settings, lambda: measure(idea, name))  # noqa: B023


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("ideas", nargs="*", help=f"of {', '.join(IDEAS)}; all when none is given")
    main(parser.parse_args().ideas)
