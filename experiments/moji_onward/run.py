"""What helps moji from here on? Each idea goes on from the committed weights.

Run `python -m experiments --only moji_onward`; one idea alone: `--cells styles`.

Every idea sees `IMAGES` more images (twenty minutes of one core) on one thread, after the same warm-up, with the same
first draws. Two running averages of its weights, a short and a long one, are then judged: squared error on 512 held-out
draws whose captions say everything, as prompts do, and 400 prompts drawn. An idea's state is in the cache: a kill costs
`SAVE_EVERY` images, and pretraining can go on from the last one.

The rule, fixed before the runs: an idea is adopted when names and styles together are at least three points above going
on as before (the same average), names not more than two points below, and held-out loss not more than 1 % above.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import PixArtTransformer2DModel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from atomtune.moji.pipeline import WEIGHTS_FOLDER, assemble
from atomtune.moji.scenes import Mix
from experiments.common.cells import read
from experiments.common.processes import as_in_pretraining
from experiments.common.report import table
from experiments.moji_trials.run import held_out
from pretraining import CACHE, state, transformer
from pretraining.batches import Batches
from pretraining.evaluate import draw, scenes, score
from pretraining.transformer import AVERAGE, BATCH, LEARNING_RATE, WARMUP

HERE = Path(__file__).parent
IMAGES, PROMPTS, SAVE_EVERY = 57_600, 400, 100 * BATCH
HELD_OUT = range(10**9, 10**9 + 512 // BATCH)  # the numbers of batches that no training comes to
EVERYTHING_SAID = Mix(style_said=1.0)
AVERAGES = {"short": AVERAGE, "long": 0.9998}


@dataclass(frozen=True)
class Idea:
    """One change of how training goes on."""

    name: str
    title: str
    mix: Mix = field(default_factory=Mix)
    batch: int = BATCH
    cooldown: float = 0.0
    """Last share of the images over which the learning rate falls to zero."""

    @property
    def settings(self) -> dict[str, Any]:
        shared = {"images": IMAGES, "prompts": PROMPTS, "batch": self.batch, "cooldown": self.cooldown}
        return shared | vars(self.mix)


IDEAS = (
    Idea("as-before", "going on as before"),
    Idea("styles", "19 of 20 captions say the style", Mix(style_said=0.95)),
    Idea("off-center", "half of the scenes off the center or of another size", Mix(centered=0.35)),
    Idea("batch-128", "batch 128", batch=128),
    Idea("cooldown", "the learning rate falls to zero over the last half", cooldown=0.5),
)


def learning_rate(idea: Idea, images: int) -> float:
    risen = (images + idea.batch) / (WARMUP * BATCH)
    falls = (IMAGES - images) / (idea.cooldown * IMAGES) if idea.cooldown else 1.0
    return LEARNING_RATE * min(1.0, risen, falls)


def grid(quick: bool = False) -> dict[str, Idea]:
    """There is no small slice: an idea has its twenty minutes."""
    return {} if quick else {idea.name: idea for idea in IDEAS}


def measure(idea: Idea) -> dict[str, Any]:
    """Train on, and judge both averages."""
    as_in_pretraining()
    name = idea.name
    torch.manual_seed(0)
    vae = transformer.trained_autoencoder()
    batches, asked = Batches(vae, idea.mix), Batches(vae, EVERYTHING_SAID)
    model = PixArtTransformer2DModel.from_pretrained(
        WEIGHTS_FOLDER / "transformer", torch_dtype=torch.float32, variant="fp16"
    )
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


def results(out: Path = HERE) -> str:
    """A row for each idea and average."""
    found, rows = read(out), []
    for idea in IDEAS:
        for key, one in found.get(idea.name, {}).items():
            before = found.get("as-before", {}).get(key)
            verdict = "adopted" if before and adopted(one, before) else "–"
            shares = [f"{one[score]:.1%}" for score in ("name_first", "style", "background", "place")]
            rows.append((idea.title, f"{AVERAGES[key]}", f"{one['loss']:.4f}", *shares, verdict))
    return table(("", "average", "held-out loss", "names", "styles", "background", "place", "verdict"), rows)
