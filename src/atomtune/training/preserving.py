"""Other prompts, on which the adapted model is trained to answer what the base answers (output matching).

    L = L_subject + w · mean |f_adapted(x_t, t, c) - f_base(x_t, t, c)|²        c: prompts without the subject

The base draws images of some prompts once. Noised examples of each, with its own prompt and some more, and the base's
answers on them are kept in the cache folder, a file for each image, for the base and not for the run, so that a step
costs only the adapter's own pass over a few more rows.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import reduce
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import send_to_device
from jaxtyping import Int
from torch import Tensor

from atomtune import bases, sampling
from atomtune.bases.families import family_of
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

DRAWS = 7  # noised examples of each image, each with a prompt of its own
NEAR, FAR = 12, len(EVERYDAY) // DRAWS  # images of things most like the class, and of others: each thing is said
MEASURED = 400  # examples on which a floor is measured, at most
BATCH, PIXELS = 8, 512 * 512  # images drawn, and answers computed, together; of so many pixels in all


@dataclass
class Others:
    """Noised examples of other prompts, whose targets are the base's own answers; all on the CPU."""

    examples: Noised
    conditionings: list[encoding.Conditioning]
    """One for each example."""

    def draw(self, count: int, generator: torch.Generator) -> tuple[Noised, list[encoding.Conditioning]]:
        """`count` examples at random, and their conditionings."""
        return self.rows(torch.randint(len(self.conditionings), (count,), generator=generator))

    def rows(self, chosen: Int[Tensor, " count"]) -> tuple[Noised, list[encoding.Conditioning]]:
        """These examples, and their conditionings."""
        return self.examples.rows(chosen), [self.conditionings[place] for place in chosen.tolist()]

    @property
    def all_measured(self) -> bool:
        """Whether `batches` has all examples."""
        return len(self.conditionings) <= MEASURED

    def batches(self, size: int) -> Iterator[tuple[Noised, list[encoding.Conditioning]]]:
        """All examples in turn, of very many `MEASURED` of them."""
        count = len(self.conditionings)
        return map(self.rows, torch.linspace(0, count - 1, min(count, MEASURED)).long().split(size))


def other_prompts(config: CustomizeConfig, classes: Sequence[str]) -> list[tuple[str, ...]]:
    """The prompts of the `DRAWS` examples of each image; the image is drawn from the first of them.

    They are those of `preserve_prompts`; none without `preserve`. By default everyday things in contexts that take
    turns: images of those most like the classes of what is learnt and of others, and each of all things in some
    example. Many prompts count for more than many images: what an adapter does on prompts that it was not trained on is
    mostly what it does on words that it has not seen (experiments/drift/README.md). And the empty prompt, which
    guidance uses. A class itself is not among them: "a teapot" and "a sks teapot" are so alike to a text encoder that
    what keeps the one as it was keeps the other from being learnt.
    """
    if not config.preserve:
        return []
    if config.preserve_prompts is not None:
        prompts = read_prompts(config.preserve_prompts)
        return [_in_turn(prompts, place) for place in range(len(prompts))]
    places = [f" on {background(colour)}" for colour in BACKGROUNDS] if config.base == bases.MOJI else CONTEXTS
    nearest = most_like_first(classes, EVERYDAY)
    said = {thing: with_article(thing) + places[number % len(places)] for number, thing in enumerate(EVERYDAY)}
    said = [said[thing if thing in nearest else nearest[0]] for thing in EVERYDAY]
    far = range(0, FAR * DRAWS, DRAWS)
    near = [number for thing in nearest if (number := EVERYDAY.index(thing)) not in far][:NEAR]
    return [*(_in_turn(said, number) for number in (*near, *far)), ("",) * DRAWS]


def _in_turn(prompts: Sequence[str], first: int) -> tuple[str, ...]:
    """`DRAWS` prompts from the first on, and after the last from the beginning."""
    return tuple(prompts[(first + more) % len(prompts)] for more in range(DRAWS))


def refuse_learnt(config: CustomizeConfig, prompts: Sequence[tuple[str, ...]], subjects: Sequence[Subject]) -> None:
    """Raise `UserError` for one of the user's prompts that has a subject's token: it cannot be learnt and stay as it
    was."""
    for prompt, *_ in prompts if config.preserve_prompts is not None else ():
        for subject in subjects:
            if subject.is_in(prompt):
                raise UserError(
                    f"preserve_prompts has {prompt!r}, and {subject.token!r} is what is learnt, which cannot stay as "
                    "it was: leave this prompt out."
                )


def answered(
    base: bases.BaseParts,
    config: CustomizeConfig,
    prompts: Sequence[tuple[str, ...]],
    resolution: GivenSize,
    accelerator: Accelerator,
) -> Others:
    """The base's answers on these prompts: read from the cache folder, or drawn, computed and kept there. The base
    carries no adapter.

    Raises `UserError` if the cache folder cannot be written to, before anything is drawn, or a file in it is damaged.
    """
    folder = cache_folder() / "preserve" / _key(base, config, resolution)
    names = {group: hashlib.sha256(json.dumps(group).encode()).hexdigest()[:32] for group in prompts}
    files = {group: folder / f"{name}.pt" for group, name in names.items()}
    with accelerator.main_process_first():  # the others read what it wrote
        if missing := [group for group, file in files.items() if not file.is_file()]:
            _refuse_unwritable(folder)
            for group, answer in zip(missing, _answers(base, missing, config, resolution, accelerator)):
                with atomic_file(files[group]) as temporary:
                    torch.save(answer, temporary)
    examples, conditionings, known = [], [], {}
    for group, file in files.items():
        try:
            stored = torch.load(file, map_location="cpu", weights_only=True)
            examples.append(Noised(**stored["examples"]))
        except (OSError, EOFError, RuntimeError, UnpicklingError, KeyError, TypeError) as error:
            raise UserError(
                f"{file}, where answers of the base are kept, cannot be read: remove it, and they are computed again."
            ) from error
        # in memory once, though in many files
        conditionings += [known.setdefault(*each) for each in zip(group, stored["conditionings"])]
    return Others(reduce(Noised.joined, examples), conditionings)


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
    prompts: Sequence[tuple[str, ...]],
    config: CustomizeConfig,
    resolution: GivenSize,
    accelerator: Accelerator,
) -> list[dict[str, Any]]:
    """For each image, the fields of its noised examples and their conditionings. The text encoders are freed before
    the denoiser is loaded."""
    logger.info("drawing %d images of other prompts with the base, once for this base", len(prompts))
    pipe, device = base.pipe, accelerator.device
    base.load(bases.TEXT)
    bases.offload(pipe, device)
    words = dict.fromkeys(prompt for group in prompts for prompt in group)
    conditionings = {
        prompt: send_to_device(encoding.encode_caption(pipe, prompt, resolution), "cpu") for prompt in words
    }
    height, width = Size.of(resolution).shape
    drawn = [first for first, *_ in prompts]
    size = max(1, min(BATCH, PIXELS // (height * width)))
    batches = [drawn[start : start + size] for start in range(0, len(drawn), size)]
    told = [encoding.encode_prompt(pipe, batch, resolution) for batch in batches]
    pipe.remove_all_hooks()
    base.drop(bases.TEXT)

    base.load(bases.DENOISER)
    base.load(bases.IMAGES)
    bases.offload(pipe, device, config.offload or "model")
    drawings = []
    for batch, answer in zip(batches, told):
        with encoding.replayed(pipe, answer):
            drawings += sampling.generate(pipe, batch, seed=0, resolution=resolution, batch_size=size)
    base.free(bases.DENOISER)
    latents = encoding.encode_images(pipe, [drawing.image for drawing in drawings])
    pipe.remove_all_hooks()
    base.free(bases.IMAGES)

    base.load(bases.DENOISER)
    model, objective, answers = bases.denoiser(pipe).to(device), encoding.objective_of(pipe), []
    for place, group in enumerate(prompts):
        # Noise that depends on the prompt alone, and not on which others are drawn with it.
        generator = torch.Generator().manual_seed(int(hashlib.sha256(group[0].encode()).hexdigest()[:15], 16))
        captions = [conditionings[prompt] for prompt in group]
        examples = objective.add_noise(latents.draw([place] * DRAWS, generator), generator)
        targets = []
        for rows in (slice(start, start + size) for start in range(0, DRAWS, size)):
            part = examples.rows(rows).to(device)
            moved: Any = send_to_device(captions[rows], device)
            with accelerator.autocast():
                answer = encoding.predict(model, part, moved, model.dtype, family_of(pipe))
            targets.append(predicted(answer, part).float().cpu())
        examples = replace(examples, target=torch.cat(targets))
        kept = {name: part for name, part in asdict(examples).items() if part is not None}
        answers.append({"examples": kept, "conditionings": captions})
    base.free(bases.DENOISER)
    return answers
