"""Other prompts, on which the adapted model is trained to answer what the base answers (output matching).

    L = L_subject + w · mean |f_adapted(x_t, t, c) - f_base(x_t, t, c)|²        c: prompts without the subject

The base draws an image of each prompt once. Noised examples of these images and the base's answers on them are kept in
the cache folder, a file for each prompt, for the base and not for the run, so that a step costs only the adapter's own
pass over a few more rows.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import reduce
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int
from torch import Tensor

from atomtune import bases, sampling
from atomtune.bases.families import Family, family_of
from atomtune.errors import UserError
from atomtune.files import atomic_file, cache_folder, read_prompts, temporary_beside
from atomtune.metrics.drift import most_like_first
from atomtune.moji.scenes import BACKGROUNDS, with_article
from atomtune.prompts import CONTEXTS, EVERYDAY, Subject, background
from atomtune.sizes import GivenSize, Size
from atomtune.training import encoding
from atomtune.training.objectives import Noised, predicted

if TYPE_CHECKING:
    from accelerate import Accelerator

    from atomtune.training.config import CustomizeConfig

logger = logging.getLogger(__name__)

NEAR, FAR = 12, 36  # things most like the class, and others
DRAWS = 4  # noised examples of each image
MEASURED = 256  # examples on which a floor is measured, at most
BATCH = 8  # images drawn, and answers computed, together


@dataclass
class Others:
    """Noised examples of other prompts, whose targets are the base's own answers: `DRAWS` of each prompt in turn."""

    examples: Noised
    conditionings: list[encoding.Conditioning]
    """One for each prompt."""

    def draw(self, count: int, generator: torch.Generator) -> tuple[Noised, list[encoding.Conditioning]]:
        """`count` examples at random, and their conditionings."""
        return self.rows(torch.randint(DRAWS * len(self.conditionings), (count,), generator=generator))

    def rows(self, chosen: Int[Tensor, " count"]) -> tuple[Noised, list[encoding.Conditioning]]:
        """These examples, and their conditionings."""
        return self.examples.rows(chosen), [self.conditionings[place // DRAWS] for place in chosen.tolist()]


def other_prompts(config: CustomizeConfig, classes: Sequence[str]) -> list[str]:
    """The prompts of `preserve_prompts`; none without `preserve`. By default everyday things, among them those most
    like the classes of what is learnt, in contexts that take turns, and the empty prompt, which guidance uses.

    A class itself is not among them: "a teapot" and "a sks teapot" are so alike to a text encoder that what keeps the
    one as it was keeps the other from being learnt (experiments/drift/README.md).
    """
    if not config.preserve:
        return []
    if config.preserve_prompts is not None:
        return read_prompts(config.preserve_prompts)
    places = [f" on {background(colour)}" for colour in BACKGROUNDS] if config.base == bases.MOJI else CONTEXTS
    said = {thing: with_article(thing) + places[number % len(places)] for number, thing in enumerate(EVERYDAY)}
    nearest = most_like_first(classes, EVERYDAY)
    things = nearest[:NEAR] + [nearest[NEAR + number * (len(nearest) - NEAR) // FAR] for number in range(FAR)]
    return [*(said[thing] for thing in things), ""]


def refuse_learnt(config: CustomizeConfig, prompts: Sequence[str], subjects: Sequence[Subject]) -> None:
    """Raise `UserError` for one of the user's prompts that has a subject's token: it cannot be learnt and stay as it
    was."""
    for prompt in prompts if config.preserve_prompts is not None else ():
        for subject in subjects:
            if subject.is_in(prompt):
                raise UserError(
                    f"preserve_prompts has {prompt!r}, and {subject.token!r} is what is learnt, which cannot stay as "
                    "it was: leave this prompt out."
                )


def answered(
    base: bases.BaseParts,
    config: CustomizeConfig,
    prompts: Sequence[str],
    resolution: GivenSize,
    accelerator: Accelerator,
) -> Others:
    """The base's answers on these prompts: read from the cache folder, or drawn, computed and kept there. The base
    carries no adapter.

    Raises `UserError` if the cache folder cannot be written to, before anything is drawn, or a file in it is damaged.
    """
    folder = cache_folder() / "preserve" / _key(base, config, resolution)
    files = {prompt: folder / f"{hashlib.sha256(prompt.encode()).hexdigest()[:32]}.pt" for prompt in prompts}
    with accelerator.main_process_first():  # the others read what it wrote
        if missing := [prompt for prompt, file in files.items() if not file.is_file()]:
            _refuse_unwritable(folder)
            for prompt, answer in zip(missing, _answers(base, missing, config, resolution, accelerator)):
                with atomic_file(files[prompt]) as temporary:
                    torch.save(answer, temporary)
    examples, conditionings = [], []
    # Of several processes on a CPU each has the device "cpu:0", which `torch.load` does not know.
    place = "cpu" if accelerator.device.type == "cpu" else accelerator.device
    for file in files.values():
        try:
            stored = torch.load(file, map_location=place, weights_only=True)
            examples.append(Noised(**stored["examples"]).to(torch.device("cpu")))
        except torch.OutOfMemoryError:
            raise
        except (OSError, EOFError, RuntimeError, UnpicklingError, KeyError, TypeError) as error:
            raise UserError(
                f"{file}, where answers of the base are kept, cannot be read: remove it, and they are computed again."
            ) from error
        conditionings.append(stored["conditioning"])
    return Others(reduce(Noised.joined, examples), conditionings)


@torch.no_grad()
def answer_others(
    model: Any, others: Others, batch_size: int, device: torch.device, dtype: torch.dtype, family: Family
) -> None:
    """Run the model on the examples of other prompts, of very many on `MEASURED` of them, while a floor is measured."""
    count = DRAWS * len(others.conditionings)
    for chosen in torch.linspace(0, count - 1, min(count, MEASURED)).long().split(batch_size):
        examples, captions = others.rows(chosen)
        encoding.predict(model, examples.to(device), captions, dtype, family)


def _refuse_unwritable(folder: Path) -> None:
    """Raise `UserError` if nothing can be kept in this part of the cache folder."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with temporary_beside(folder / "trial") as trial:
            trial.touch()
    except OSError as error:
        raise UserError(
            f"what the base answers on other prompts is kept in {folder}, which cannot be written ({error.strerror}): "
            "set the environment variable ATOMTUNE_CACHE to another folder."
        ) from error


def _key(base: bases.BaseParts, config: CustomizeConfig, resolution: GivenSize) -> str:
    """A name for what is kept of a base: what differs in any of its parts, in precision or size, has another one."""
    named = [base.digest(), config.mixed_precision, config.quantize, Size.of(resolution).plain, DRAWS]
    return hashlib.sha256(json.dumps(named).encode()).hexdigest()[:32]


@torch.no_grad()
def _answers(
    base: bases.BaseParts,
    prompts: Sequence[str],
    config: CustomizeConfig,
    resolution: GivenSize,
    accelerator: Accelerator,
) -> list[dict[str, Any]]:
    """For each prompt, the fields of its noised examples and its conditioning. The text encoders are freed before the
    denoiser is loaded."""
    logger.info("drawing %d images of other prompts with the base, once for this base", len(prompts))
    pipe, device = base.pipe, accelerator.device
    base.load(bases.TEXT)
    bases.offload(pipe, device)
    conditionings = [encoding.encode_caption(pipe, prompt, resolution) for prompt in prompts]
    batches = [[*prompts[start : start + BATCH]] for start in range(0, len(prompts), BATCH)]
    told = [encoding.encode_prompt(pipe, batch, resolution) for batch in batches]
    pipe.remove_all_hooks()
    base.drop(bases.TEXT)

    base.load(bases.DENOISER)
    base.load(bases.IMAGES)
    bases.offload(pipe, device, config.offload or "model")
    drawings = []
    for batch, answer in zip(batches, told):
        with encoding.replayed(pipe, answer):
            drawings += sampling.generate(pipe, batch, seed=0, resolution=resolution, batch_size=BATCH)
    base.free(bases.DENOISER)
    latents = encoding.encode_images(pipe, [drawing.image for drawing in drawings])
    pipe.remove_all_hooks()
    base.free(bases.IMAGES)

    base.load(bases.DENOISER)
    model, objective, answers = bases.denoiser(pipe).to(device), encoding.objective_of(pipe), []
    for place, (prompt, conditioning) in enumerate(zip(prompts, conditionings)):
        # Noise that depends on the prompt alone, and not on which others are drawn with it.
        generator = torch.Generator().manual_seed(int(hashlib.sha256(prompt.encode()).hexdigest()[:15], 16))
        examples = objective.add_noise(latents.draw([place] * DRAWS, generator), generator)
        part = examples.to(device)
        with accelerator.autocast():
            answer = encoding.predict(model, part, [conditioning] * DRAWS, model.dtype, family_of(pipe))
        examples = replace(examples, target=predicted(answer, part).float().cpu())
        kept = {name: part for name, part in asdict(examples).items() if part is not None}
        answers.append({"examples": kept, "conditioning": conditioning})
    base.free(bases.DENOISER)
    return answers
