"""What helps moji from here on? Each idea goes on from the committed weights.

Run `python -m experiments --only moji_onward`; one idea alone: `--cells styles`.

Every idea sees `IMAGES` more images (twenty minutes of one core) on one thread, or a million on a card (half a minute;
the folder of `pretraining.bundle` is then `bundle` in the cache), after the same warm-up, with the same first draws.
Two running averages of its weights, a short and a long one, are then judged: squared error on 512 held-out draws whose
captions say everything, as prompts do, and 400 prompts drawn. An idea's state is in the cache: a kill costs
`SAVE_EVERY` seconds, and pretraining can go on from the last one.

The rule, fixed before the runs: an idea is adopted when names and styles together are at least three points above going
on as before (the same average), names not more than two points below, and held-out loss not more than 1 % above. One
that is about small things (judged on a card, on `PROMPTS` prompts of them) is also adopted when their names and places
together are at least five points above, and names and styles together not more than two points below.
"""

import time
from dataclasses import dataclass, field
from functools import cache
from itertools import islice
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
from pretraining.batches import Batches, CardBatches, Scenes
from pretraining.evaluate import draw, scenes, score
from pretraining.transformer import AVERAGE, AVERAGE_EVERY, BATCH, LEARNING_RATE, SAVE_EVERY, WARMUP

HERE = Path(__file__).parent
IMAGES, CARD_IMAGES, PROMPTS = 57_600, 1_048_576, 400
HELD_OUT, HELD_OUT_BATCHES = 10**9, 512 // BATCH  # the first of the numbers of batches that no training comes to
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
    images: int = IMAGES
    warmup: int = WARMUP
    """Steps."""
    rate: float = LEARNING_RATE
    device: str = "cpu"

    @property
    def settings(self) -> dict[str, Any]:
        shared = {"images": self.images, "prompts": PROMPTS, "batch": self.batch, "cooldown": self.cooldown}
        of_card = {"warmup": self.warmup, "rate": self.rate, "device": self.device} if self.device != "cpu" else {}
        return shared | of_card | vars(self.mix)

    def learning_rate(self, images: int) -> float:
        risen = (images + self.batch) / (self.warmup * self.batch)
        falls = (self.images - images) / (self.cooldown * self.images) if self.cooldown else 1.0
        return self.rate * min(1.0, risen, falls)


def on_a_card(name: str, title: str, mix: Mix = transformer.MIX, batch: int = 512, **changed: Any) -> Idea:
    return Idea(name, title, mix, batch, images=CARD_IMAGES, warmup=100, device="cuda", **changed)


IDEAS = (
    Idea("as-before", "going on as before"),
    Idea("styles", "19 of 20 captions say the style", Mix(style_said=0.95)),
)
"""Judged on a CPU; what was adopted is how those below go on as before."""
CARD_IDEAS = (
    on_a_card("card-as-before", "going on as before, batch 512"),
    on_a_card("card-cooldown", "the learning rate falls to zero over the last fifth", cooldown=0.2),
    on_a_card(
        "card-off-center", "two of three scenes off the center or of another size", Mix(centered=0.35, style_said=0.95)
    ),
    on_a_card("card-batch", "batch 2,048 at twice the learning rate", batch=2048, rate=2 * LEARNING_RATE),
)


@cache
def batches_on(device: str) -> Batches:
    """Batches of the autoencoder's latents; their mix is set by who asks for it."""
    vae = transformer.trained_autoencoder()
    return Batches(vae) if device == "cpu" else CardBatches(vae, CACHE / "bundle", torch.device(device))


def grid(quick: bool = False) -> dict[str, Idea]:
    """There is no small slice: an idea has its twenty minutes."""
    return {} if quick else {idea.name: idea for idea in (*IDEAS, *CARD_IDEAS)}


def measure(idea: Idea) -> dict[str, Any]:
    """Train on, and judge both averages."""
    if idea.device == "cpu":
        as_in_pretraining()
    torch.set_float32_matmul_precision("high")
    torch.compiler.reset()  # each batch size in shapes of its own
    torch.manual_seed(0)
    name, batches = idea.name, batches_on(idea.device)
    batches.scenes = Scenes(batches.drawings, EVERYTHING_SAID)
    drawn = list(islice(batches.stream(HELD_OUT, BATCH), HELD_OUT_BATCHES))
    batches.scenes = Scenes(batches.drawings, idea.mix)
    model = PixArtTransformer2DModel.from_pretrained(
        WEIGHTS_FOLDER / "transformer", torch_dtype=torch.float32, variant="fp16"
    ).to(idea.device)  # pyright: ignore[reportArgumentType]
    averages = {
        key: AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay ** (AVERAGE_EVERY * idea.batch / BATCH)))
        for key, decay in AVERAGES.items()
    }
    optimizer, file, start = transformer.optimizer(model), CACHE / f"onward-{name}.pt", 0
    parts: dict[str, Any] = {"model": model, "optimizer": optimizer, **averages}
    if (last := state.load(file)) is not None:
        start = last["images"]
        for key, part in parts.items():
            part.load_state_dict(last[key])
    transformer.prepare(model)
    clock = saved = time.time()
    run = batches.running(lambda batch: transformer.step(model, optimizer, batch))
    stream = batches.inputs(start // idea.batch, idea.batch)
    for images, inputs in zip(range(start, idea.images, idea.batch), stream):
        for group in optimizer.param_groups:
            group["lr"].fill_(idea.learning_rate(images))
        loss = run(inputs)
        if images // idea.batch % AVERAGE_EVERY == AVERAGE_EVERY - 1:
            for average in averages.values():
                average.update_parameters(model)
        if images // idea.batch % 100 == 99:
            speed, clock = 100 * idea.batch / (time.time() - clock), time.time()
            print(f"{name}: {images + idea.batch:,} images, {speed:,.0f} a second, loss {loss:.4f}", flush=True)
        if time.time() - saved > SAVE_EVERY:
            state.save(file, images=images + idea.batch, **{key: part.state_dict() for key, part in parts.items()})
            saved = time.time()
    wanted, small = scenes(batches.drawings, PROMPTS), scenes(batches.drawings, PROMPTS, small=True)
    values: dict[str, Any] = {}
    for key, average in averages.items():
        pipe: Any = assemble(average.module.eval(), batches.vae).to(idea.device)  # pyright: ignore[reportArgumentType]
        pipe.set_progress_bar_config(disable=True)
        values[key] = {"loss": held_out(pipe.transformer, drawn)} | score(draw(pipe, wanted), wanted)
        if idea.device != "cpu":
            of_small = score(draw(pipe, small), small)
            values[key] |= {f"small_{kind}": of_small[kind] for kind in ("name_first", "place")}
        print(f"{name}, {key} average: {values[key]}", flush=True)
    return values


def adopted(values: dict[str, Any], before: dict[str, Any]) -> bool:
    """The rule at the head of this module, on the short average of both."""

    def gain(*scores: str) -> float:
        return sum(values.get(score, 0.0) - before.get(score, 0.0) for score in scores)

    if values["loss"] > 1.01 * before["loss"] or gain("name_first") < -0.02:
        return False
    both, small = gain("name_first", "style"), gain("small_name_first", "small_place")
    return both >= 0.03 or (small >= 0.05 and both >= -0.02)


def results(out: Path = HERE) -> str:
    """A table for each machine; a row for each idea and average."""
    found, tables = read(out), []
    scores = {"name_first": "names", "style": "styles", "background": "background", "place": "place"}
    of_small = {"small_name_first": "names of small things", "small_place": "their places"}
    for ideas, columns in ((IDEAS, scores), (CARD_IDEAS, scores | of_small)):
        rows, before = [], found.get(ideas[0].name, {})
        for idea in ideas:
            for key, one in found.get(idea.name, {}).items():
                verdict = "adopted" if idea is not ideas[0] and adopted(one, before[key]) else "–"
                shares = [f"{one[score]:.1%}" for score in columns]
                rows.append((idea.title, f"{AVERAGES[key]}", f"{one['loss']:.4f}", *shares, verdict))
        if rows:
            heads = ("", "average", "held-out loss", *columns.values(), "verdict")
            tables.append(f"{ideas[0].images:,} images more:\n\n" + table(heads, rows))
    return "\n\n".join(tables)
