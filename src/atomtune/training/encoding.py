"""Encode images to latents and captions to conditioning, once, with the base's own parts.

The arguments that a denoiser gets for a caption differ from base to base (masks, pooled vectors, sizes). So they are
not computed here: the pipeline is called with the caption, and the arguments of its call of the denoiser are kept.
"""

from __future__ import annotations

import contextlib
import inspect
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.nn.functional import pad

from atomtune import bases, manifest, sampling
from atomtune.bases import call_options, denoiser
from atomtune.bases.families import Family, family_of
from atomtune.errors import UserError
from atomtune.sizes import GivenSize, Size
from atomtune.tracing import bare_model
from atomtune.training import fitting, observed, sharding
from atomtune.training.buckets import crop_corner
from atomtune.training.config import CustomizeConfig
from atomtune.training.data import Picture, alpha_tensor, fitted, read_image, to_tensor
from atomtune.training.objectives import Noised, Objective, objective_for
from atomtune.training.observed import Reached, replaced, until_reached
from atomtune.training.subjects import Shown

if TYPE_CHECKING:
    from accelerate import Accelerator
    from diffusers import DiffusionPipeline

SAMPLES = 2  # default prompts of the sample images; of several subjects one each
Conditioning = dict[str, Any]
"""Arguments of the denoiser other than the noisy latents and the timestep, for a batch."""


@dataclass
class Latents:
    """The autoencoder's output for n images: a Gaussian for each (with std 0 if the autoencoder is not variational).

    One tensor for images of one size, else a list with one for each.
    """

    mean: Float[Tensor, "n channels height width"] | list[Tensor]
    std: Float[Tensor, "n channels height width"] | list[Tensor]
    mask: list[Tensor] | None = None
    """How much each latent counts in the loss (see `Noised.mask`)."""

    def draw(self, index: list[int], generator: torch.Generator) -> Float[Tensor, "batch channels height width"]:
        """A fresh sample for each image in `index`, all of one size, as diffusers' DreamBooth scripts draw from their
        cache."""
        mean, std = (torch.stack([part[i] for i in index]) for part in (self.mean, self.std))
        return mean + std * torch.randn(mean.shape, generator=generator)

    def masks(self, index: list[int]) -> Float[Tensor, "batch channels height width"] | None:
        """The masks of these images, which are all of one size."""
        return None if self.mask is None else torch.stack([self.mask[i] for i in index])


@torch.no_grad()
def encode_images(
    pipe: DiffusionPipeline, images: Sequence[Image.Image], alphas: Sequence[Image.Image | None] = ()
) -> Latents:
    """Plain latents of the images, normalized as the denoiser expects them, in float32 on the CPU.

    `alphas` are their alpha channels, if these count in the loss. The autoencoder runs in float32: some overflow in
    half precision.
    """
    vae: Any = pipe.vae
    if vae.dtype != torch.float32:
        torch.nn.Module.to(vae, torch.float32)  # not by diffusers' own `to`, which warns of any cast
    device = getattr(pipe, "_execution_device", vae.device)  # with offloading, the autoencoder is moved there
    autoencoding = family_of(pipe).autoencoding
    encoded = [autoencoding.encode(vae, to_tensor(image)[None].to(device)) for image in images]
    means, stds = zip(*encoded, strict=True)
    mask = None
    if any(alpha is not None for alpha in alphas):
        numbers = [alpha_tensor(alpha, Size(*image.size)) for alpha, image in zip(alphas, images, strict=True)]
        mask = [autoencoding.mask(alpha[None], mean)[0] for alpha, mean in zip(numbers, means)]
    if len({mean.shape for mean in means}) > 1:
        return Latents([mean[0] for mean in means], [std[0] for std in stds], mask)
    return Latents(torch.cat(means), torch.cat(stds), mask)


def condition(pipe: DiffusionPipeline, prompt: str | list[str], resolution: GivenSize, **options: Any) -> Conditioning:
    """The arguments with which the pipeline calls its denoiser for a prompt (batch of one; two with guidance)."""
    arguments: dict[str, Any] = {}

    def stop(module: torch.nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        arguments.update(inspect.signature(module.forward).bind(*args, **kwargs).arguments)
        raise Reached

    model = bare_model(denoiser(pipe))  # PEFT's wrapper hides the names of the arguments
    options |= call_options(pipe, resolution) | {"num_inference_steps": 2}  # some samplers cannot do with one
    handle = model.register_forward_pre_hook(stop, with_kwargs=True)
    try:
        draw: Any = pipe
        with until_reached(pipe, resolution):
            draw(prompt=prompt, **options)
    finally:
        handle.remove()
    _, *others = arguments  # all but the latents
    return {name: arguments[name] for name in others if name not in (family_of(pipe).time, "return_dict")}


def encode_caption(pipe: DiffusionPipeline, caption: str, resolution: GivenSize, **options: Any) -> Conditioning:
    """The conditioning of one caption, without guidance. `options` are further arguments of the pipeline."""
    return condition(pipe, caption, resolution, **family_of(pipe).unguided, **options)


def told_sizes(pipe: DiffusionPipeline, original: tuple[int, int], size: Size) -> dict[str, Any]:
    """What SDXL's pipeline takes about an image of this original width and height that was scaled and cropped to `size`
    (arXiv 2307.01952, 2.2), as diffusers' scripts tell it; nothing for other bases."""
    if "crops_coords_top_left" not in inspect.signature(type(pipe).__call__).parameters:
        return {}
    width, height = original
    corner = crop_corner(width, height, size)
    return {"original_size": (height, width), "crops_coords_top_left": corner, "target_size": size.shape}


def encode_prompt(pipe: DiffusionPipeline, prompt: str | list[str], resolution: GivenSize) -> dict[Any, Any]:
    """What `pipe.encode_prompt` returns, for each text it is asked, when the pipeline draws a prompt, or a batch of
    them, with its default guidance.

    Raises `UserError` for a pipeline that is of no family, or has no sampler or no autoencoder.
    """
    family_of(pipe)  # raises for a pipeline of none
    for part in ("scheduler", "vae"):
        if getattr(pipe, part, None) is None:
            raise UserError(f"{type(pipe).__name__} has no {part}, which training needs.")
    original: Any = pipe.encode_prompt  # pyright: ignore[reportAttributeAccessIssue]
    answers = {}

    def record(prompt: Any, *args: Any, **kwargs: Any) -> Any:
        answers[_text(prompt)] = answer = original(prompt, *args, **kwargs)
        return answer

    with replaced(pipe, "encode_prompt", record):
        condition(pipe, prompt, resolution)
    return answers


def _text(prompt: str | list[str]) -> tuple[str, ...]:
    """The texts that a pipeline asks for; one may be by itself or in a list."""
    return (prompt,) if isinstance(prompt, str) else tuple(prompt)


@contextlib.contextmanager
def replayed(pipe: DiffusionPipeline, answers: dict[Any, Any]) -> Iterator[None]:
    """Inside the block the pipeline draws the prompts of `answers`, a result of `encode_prompt`, without its text
    encoder."""
    with replaced(pipe, "encode_prompt", lambda prompt, *args, **kwargs: answers[_text(prompt)]):
        yield


def objective_of(pipe: DiffusionPipeline, snr_gamma: float | None = None) -> Objective:
    """The objective that fits the pipeline's sampler and family. Raises `UserError` if there is none."""
    return objective_for(pipe.scheduler, snr_gamma, family_of(pipe).density)


def check(pipe: DiffusionPipeline, objective: Objective, prompt: str, answer: Any, resolution: GivenSize) -> None:
    """Raise `UserError` unless training agrees with how the pipeline draws `prompt`, for which `encode_prompt` gave
    `answer`. In float32 on every base: the sampler would amplify the rounding of half precision."""
    with replayed(pipe, cast(answer, torch.float32)):
        observed.check(pipe, objective, prompt, resolution)


def collate(conditionings: list[Conditioning], family: Family) -> Conditioning:
    """Join conditionings of one caption each to a batch."""
    conditionings = _padded(conditionings, family)
    first = conditionings[0]
    return {
        name: first[name] if name in family.shared else _joined([each[name] for each in conditionings])
        for name in first
    }


def _joined(values: list[Any]) -> Any:
    first = values[0]
    if isinstance(first, Tensor):
        if len({tuple(value.shape[1:]) for value in values}) > 1:
            raise UserError(
                "this base encodes captions to different lengths, which are not joined: set batch_size to 1, and "
                "preserve, prior_preservation and caption_dropout to none."
            )
        return torch.cat(values)
    if isinstance(first, dict):
        return {name: _joined([value[name] for value in values]) for name in first}
    return [one for value in values for one in value] if isinstance(first, list) else first


def words(conditionings: list[Conditioning], family: Family) -> list[Tensor]:
    """Which tokens of the texts of a batch are words and not padding: the masks [batch, tokens] among the arguments."""
    batch = collate(conditionings, family)
    return [value.bool() for name, value in batch.items() if name.endswith("mask") and getattr(value, "ndim", 0) == 2]


def _padded(conditionings: list[Conditioning], family: Family) -> list[Conditioning]:
    """The same with texts of one length, zeros after the shorter ones, and masks that say so."""
    for name, mask in family.masks.items():
        texts = [each[name] for each in conditionings]
        masks = [each.get(mask) for each in conditionings]
        longest = max(text.shape[1] for text in texts)
        if all(own is None and text.shape[1] == longest for own, text in zip(masks, texts)):
            continue
        masks = [
            text.new_ones(text.shape[:2], dtype=torch.long) if own is None else own for own, text in zip(masks, texts)
        ]
        conditionings = [
            each | {name: pad(text, (0, 0, 0, longest - text.shape[1])), mask: pad(own, (0, longest - own.shape[1]))}
            for each, text, own in zip(conditionings, texts, masks)
        ]
    return conditionings


def cast(conditioning: Any, dtype: torch.dtype) -> Any:
    """The conditioning with its floating-point tensors in `dtype`."""
    if isinstance(conditioning, Tensor):
        return conditioning.to(dtype) if conditioning.is_floating_point() else conditioning
    if isinstance(conditioning, dict):
        return {name: cast(value, dtype) for name, value in conditioning.items()}
    if isinstance(conditioning, tuple | list):
        return type(conditioning)(cast(value, dtype) for value in conditioning)
    return conditioning


def predict(
    model: Any, examples: Noised, conditionings: list[Conditioning], dtype: torch.dtype, family: Family
) -> Float[Tensor, "batch out_channels height width"]:
    """The model's output for noised examples, each with its conditioning, computed in `dtype`, as plain latents."""
    conditioning = cast(collate(conditionings, family), dtype)
    return family.predict(model, examples.noisy.to(dtype), examples.timesteps, conditioning)


@dataclass
class Cache:
    """All outputs of the text encoder and the autoencoder that a run needs."""

    family: Family
    latents: Latents  # with random_flip, after all images their mirror images
    conditionings: list[Conditioning]
    empty: list[Conditioning]  # those of the empty caption, for each image too
    sizes: list[Size]
    samples: dict[str, Any]  # prompt: what encode_prompt returned
    images: list[Image.Image]  # what counts of them, on white
    shown: Shown
    misfits: list[str]  # what makes the images hard to learn for the base
    class_latents: dict[Size, Latents] = field(default_factory=dict)  # those of each class after the other
    class_conditioning: dict[Size, list[Conditioning]] = field(default_factory=dict)  # one for each class


def encode(
    base: bases.BaseParts,
    config: CustomizeConfig,
    resolution: Size,
    pictures: list[Picture],
    captions: list[str],
    shown: Shown,
    accelerator: Accelerator,
) -> Cache:
    """Encode everything that a run will need, with one part of the base in memory at a time: the text encoders, the
    autoencoder, and at the end the denoiser, on the accelerator. Images of the class are drawn by the denoiser with the
    autoencoder beside it.

    Raises `UserError` if the pipeline does not draw as training assumes (see `observed`).
    """
    pipe, device = base.pipe, accelerator.device
    images, originals = [picture.image for picture in pictures], [picture.original for picture in pictures]
    visible = [picture.visible for picture in pictures]
    if config.base == bases.MOJI:
        shown = shown.on_clear_backgrounds(visible)
    each = 1 if shown.several else SAMPLES
    defaults = (prompt for subject in shown.subjects for prompt in config.prompts(subject, each))
    prompts = config.sample_prompts or tuple(defaults)
    sizes = [Size(*image.size) for image in images]
    class_prompts = [config.class_prompt or f"a {name}" for name in shown.classes] if config.prior_preservation else []
    known: dict[Any, Conditioning] = {}

    def encoded(caption: str, size: Size, told: dict[str, Any]) -> Conditioning:
        key = (caption, size, *told.values())
        if key not in known:
            known[key] = encode_caption(pipe, caption, size, **told)
        return known[key]

    base.load(bases.TEXT)
    bases.offload(pipe, device)
    samples = {prompt: encode_prompt(pipe, prompt, resolution) for prompt in prompts}
    told = [told_sizes(pipe, own, size) for own, size in zip(originals, sizes, strict=True)]
    conditionings = [encoded(*each) for each in zip(captions, sizes, told, strict=True)]
    empty = [encoded("", *each) for each in zip(sizes, told, strict=True)]
    drawn_at = (resolution.width, resolution.height)
    class_told = {size: told_sizes(pipe, drawn_at, size) for size in sizes}
    class_conditioning = {size: [encoded(prompt, size, class_told[size]) for prompt in class_prompts] for size in sizes}
    class_answers = {prompt: encode_prompt(pipe, prompt, resolution) for prompt in class_prompts}
    pipe.remove_all_hooks()
    base.drop(bases.TEXT)

    base.load(bases.IMAGES)
    bases.offload(pipe, device)
    for size in dict.fromkeys([resolution, *sizes]):
        check(pipe, objective_of(pipe, config.snr_gamma), prompts[0], samples[prompts[0]], size)
    seen = pictures + ([picture.mirrored() for picture in pictures] if config.random_flip else [])
    latents = encode_images(pipe, [picture.image for picture in seen], [picture.alpha for picture in seen])
    misfits = fitting.misfits(pipe, config.base, [min(own) for own in originals], images, latents.mean)
    cache = Cache(family_of(pipe), latents, conditionings, empty, sizes, samples, visible, shown, misfits)
    if config.prior_preservation:
        drawn = _class_images(base, config, class_answers, resolution, accelerator)
        for size in class_conditioning:
            cache.class_latents[size] = encode_images(pipe, [fitted(image, size) for image in drawn])
        cache.class_conditioning = class_conditioning
    pipe.remove_all_hooks()
    base.drop(bases.IMAGES)

    base.load(bases.DENOISER)
    if not sharding.is_used(accelerator):  # which moves it shard by shard, because the whole may not fit
        denoiser(pipe).to(device)
    return cache


def _class_images(
    base: bases.BaseParts,
    config: CustomizeConfig,
    answers: dict[str, Any],
    resolution: GivenSize,
    accelerator: Accelerator,
) -> list[Image.Image]:
    """Images of each class, drawn by the base with what its text encoders answered to the prompt of the class; those
    that an earlier start drew are kept."""
    planned = list(itertools.product(answers, range(config.num_class_images)))
    files = [config.out / "class_images" / f"{number:04d}.png" for number in range(len(planned))]
    if accelerator.is_main_process and not all(file.is_file() for file in files):
        base.load(bases.DENOISER)
        bases.offload(base.pipe, accelerator.device, config.offload or "model")
    for (prompt, index), file in zip(planned, files):
        if accelerator.is_main_process and not file.is_file():
            with replayed(base.pipe, answers[prompt]), accelerator.autocast():
                (drawing,) = sampling.generate(base.pipe, prompt, seed=config.seed + index, resolution=resolution)
            manifest.record(config.out, file)
            sampling.save_png(drawing.image, file, drawing.settings)
    if config.offload not in (None, "model"):
        base.free(bases.DENOISER)  # with its hooks, with which it cannot be trained
    accelerator.wait_for_everyone()
    return [read_image(file) for file in files]
