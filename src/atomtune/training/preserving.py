"""Other prompts, on which the adapted model is trained to answer what the base answers (output matching).

    L = L_subject + w · mean |f_adapted(x_t, t, c) - f_base(x_t, t, c)|²        c: prompts without the subject

The base draws an image of each prompt once. Noised examples of these images and the base's answers on them are kept in
the cache folder, for the base and the prompts and not for the run, so that a step costs only the adapter's own pass
over a few more rows.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from atomtune import bases, sampling
from atomtune.files import atomic_file, cache_folder, read_prompts
from atomtune.metrics.drift import most_like_first
from atomtune.moji.scenes import BACKGROUNDS, with_article
from atomtune.prompts import CONTEXTS, EVERYDAY, background
from atomtune.training import encoding
from atomtune.training.objectives import Noised, objective_for, predicted

if TYPE_CHECKING:
    from accelerate import Accelerator
    from diffusers import DiffusionPipeline

    from atomtune.training.config import CustomizeConfig

logger = logging.getLogger(__name__)

NEAR, FAR = 12, 36  # things most like the class, and others
DRAWS = 4  # noised examples of each image
MEASURED = 64  # examples on which a floor is measured
BATCH = 8  # images drawn, and answers computed, together


@dataclass
class Others:
    """Noised examples of other prompts, whose targets are the base's own answers."""

    examples: Noised
    conditionings: list[encoding.Conditioning]
    """One for each prompt."""
    prompts: list[int]
    """The prompt of each example."""

    def draw(self, count: int, generator: torch.Generator) -> tuple[Noised, list[encoding.Conditioning]]:
        """`count` examples at random, and their conditionings."""
        chosen = torch.randint(len(self.prompts), (count,), generator=generator)
        return self.examples.rows(chosen), [self.conditionings[self.prompts[place]] for place in chosen.tolist()]


def other_prompts(config: CustomizeConfig) -> list[str]:
    """The prompts of `preserve_prompts`; none without `preserve`. By default everyday things, among them those most
    like the class, in contexts that take turns, and the empty prompt, which guidance uses.

    The class itself is not among them: "a teapot" and "a sks teapot" are so alike to a text encoder that what keeps the
    one as it was keeps the other from being learnt (docs/results/drift.md).
    """
    if not config.preserve:
        return []
    if config.preserve_prompts is not None:
        return read_prompts(config.preserve_prompts)
    places = [f" on {background(colour)}" for colour in BACKGROUNDS] if config.base == bases.MOJI else CONTEXTS
    nearest = most_like_first(config.class_name, EVERYDAY)
    things = nearest[:NEAR] + [nearest[NEAR + number * (len(nearest) - NEAR) // FAR] for number in range(FAR)]
    prompts = [with_article(thing) + places[number % len(places)] for number, thing in enumerate(things)]
    return [*dict.fromkeys(prompts), ""]


def answered(
    pipe: DiffusionPipeline, config: CustomizeConfig, prompts: Sequence[str], resolution: int, accelerator: Accelerator
) -> Others:
    """The base's answers on these prompts: read from the cache folder, or drawn, computed and kept there.

    `pipe` carries no adapter, and has all its parts. Raises `UserError` if the cache folder cannot be written to.
    """
    file = cache_folder() / "preserve" / f"{_key(pipe, config, prompts, resolution)}.pt"
    with accelerator.main_process_first():  # the others read what it wrote
        if not file.is_file():
            found = _answers(pipe, config, prompts, resolution, accelerator)
            with atomic_file(file) as temporary:
                torch.save(asdict(found), temporary)
    stored = torch.load(file, map_location=accelerator.device, weights_only=True)
    examples = Noised(**stored["examples"]).to(torch.device("cpu"))
    return Others(examples, stored["conditionings"], stored["prompts"])


@torch.no_grad()
def answer_others(
    model: Any, others: Others, generator: torch.Generator, batch_size: int, device: torch.device, dtype: torch.dtype
) -> None:
    """Run the model on some examples of other prompts, while a floor is measured."""
    for _ in range(0, MEASURED, batch_size):
        examples, captions = others.draw(batch_size, generator)
        encoding.predict(model, examples.to(device), captions, dtype)


def _key(pipe: DiffusionPipeline, config: CustomizeConfig, prompts: Sequence[str], resolution: int) -> str:
    """A name for what is kept: other prompts, another base or another precision have another one."""
    digest = hashlib.sha256()
    for parameter in bases.denoiser(pipe).parameters():
        ends = parameter.detach().flatten()
        digest.update(torch.cat([ends[:64], ends[-64:]]).float().cpu().numpy().tobytes())
    settings = [config.base, config.mixed_precision, resolution, DRAWS, *prompts]
    digest.update(json.dumps(settings).encode())
    return digest.hexdigest()[:32]


@torch.no_grad()
def _answers(
    pipe: DiffusionPipeline, config: CustomizeConfig, prompts: Sequence[str], resolution: int, accelerator: Accelerator
) -> Others:
    logger.info("drawing %d images of other prompts with the base, once for these prompts", len(prompts))
    device = accelerator.device
    if device.type != "cpu":
        pipe.enable_model_cpu_offload(device=device) if pipe.model_cpu_offload_seq else pipe.to(device)
    conditionings = [encoding.encode_caption(pipe, prompt, resolution) for prompt in prompts]
    pipe.maybe_free_model_hooks()
    drawings = sampling.generate(pipe, list(prompts), seed=0, resolution=resolution, batch_size=BATCH)
    latents = encoding.encode_images(pipe, [drawing.image for drawing in drawings])
    pipe.remove_all_hooks()

    generator, base = torch.Generator().manual_seed(0), bases.denoiser(pipe).to(device)
    of = [prompt for prompt in range(len(prompts)) for _ in range(DRAWS)]
    examples = objective_for(pipe.scheduler).add_noise(latents.draw(of, generator), generator)
    targets = []
    for first in range(0, len(of), BATCH):
        part = examples.rows(slice(first, first + BATCH)).to(device)
        captions = [conditionings[prompt] for prompt in of[first : first + BATCH]]
        with accelerator.autocast():
            answer = encoding.predict(base, part, captions, base.dtype)
        targets.append(predicted(answer, part).float().cpu())
    return Others(replace(examples, target=torch.cat(targets)), conditionings, of)
