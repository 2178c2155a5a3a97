"""Encode images to latents and captions to conditioning, once, with the base's own parts.

The arguments that a denoiser gets for a caption differ from base to base (masks, pooled vectors, sizes). So they are
not computed here: the pipeline is called with the caption, and the arguments of its call of the denoiser are kept.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from atomtune import bases, manifest, sampling
from atomtune.bases import call_options, denoiser
from atomtune.errors import UserError
from atomtune.metrics.pixels import clear_backgrounds
from atomtune.tracing import bare_model
from atomtune.training import fitting, observed
from atomtune.training.config import CustomizeConfig
from atomtune.training.data import read_image, square, to_tensor
from atomtune.training.objectives import Noised, Objective, objective_for
from atomtune.training.observed import Reached, latent_statistics, replaced, until_reached

if TYPE_CHECKING:
    from accelerate import Accelerator
    from diffusers import DiffusionPipeline

SAMPLES = 2  # default prompts of the sample images
Conditioning = dict[str, Any]
"""Arguments of the denoiser other than the noisy latents and the timestep, for a batch."""


@dataclass
class Latents:
    """The autoencoder's output for n images: a Gaussian for each (with std 0 if the autoencoder is not variational)."""

    mean: Float[Tensor, "n channels height width"]
    std: Float[Tensor, "n channels height width"]

    def draw(self, index: list[int], generator: torch.Generator) -> Float[Tensor, "batch channels height width"]:
        """A fresh sample for each image in `index`, as diffusers' DreamBooth scripts draw from their cache."""
        mean, std = self.mean[index], self.std[index]
        return mean + std * torch.randn(mean.shape, generator=generator)


@torch.no_grad()
def encode_images(pipe: DiffusionPipeline, images: list[Image.Image]) -> Latents:
    """Latents of the images, shifted and scaled as the denoiser expects them, in float32 on the CPU.

    The autoencoder runs in float32: some overflow in half precision.
    """
    vae = pipe.vae if pipe.vae.dtype == torch.float32 else pipe.vae.to(torch.float32)
    device = getattr(pipe, "_execution_device", vae.device)  # with offloading, the autoencoder is moved there
    shift, scale = latent_statistics(vae)
    means, stds = [], []
    for image in images:
        encoded = vae.encode(to_tensor(image)[None].to(device))
        gaussian = getattr(encoded, "latent_dist", None)
        mean = encoded.latents if gaussian is None else gaussian.mean
        std = torch.zeros_like(mean) if gaussian is None else gaussian.std
        means.append((mean.cpu() - shift) * scale)
        stds.append(std.cpu() * scale)
    return Latents(torch.cat(means), torch.cat(stds))


def condition(pipe: DiffusionPipeline, prompt: str, resolution: int, **options: Any) -> Conditioning:
    """The arguments with which the pipeline calls its denoiser for a prompt (batch of one; two with guidance)."""
    arguments: dict[str, Any] = {}

    def stop(module: torch.nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        arguments.update(inspect.signature(module.forward).bind(*args, **kwargs).arguments)
        raise Reached

    model = bare_model(denoiser(pipe))  # PEFT's wrapper hides the names of the arguments
    options |= call_options(pipe, resolution) | {"num_inference_steps": 1}
    handle = model.register_forward_pre_hook(stop, with_kwargs=True)
    try:
        draw: Any = pipe
        with until_reached(pipe, resolution):
            draw(prompt, **options)
    finally:
        handle.remove()
    sample_name, *others = arguments
    sample = arguments[sample_name]
    shape = tuple(sample.shape) if isinstance(sample, Tensor) else f"a {type(sample).__name__}"
    if len(shape) != 4 or shape[1] != model.config.get("in_channels"):
        raise UserError(
            f"{type(pipe).__name__} gives its denoiser {shape} and not latents [batch, channels, height, width]: bases "
            "that pack or list their latents cannot be trained on; choose another base."
        )
    return {name: arguments[name] for name in others if name not in ("timestep", "return_dict")}


def encode_caption(pipe: DiffusionPipeline, caption: str, resolution: int) -> Conditioning:
    """The conditioning of one caption, without guidance."""
    return condition(pipe, caption, resolution, guidance_scale=1.0)


def encode_prompt(pipe: DiffusionPipeline, prompt: str, resolution: int) -> Any:
    """What `pipe.encode_prompt` returns for a prompt when the pipeline draws it with its default guidance.

    Raises `UserError` for a pipeline without this function, a sampler or an autoencoder: it cannot be trained on.
    """
    for part in ("encode_prompt", "scheduler", "vae"):
        if getattr(pipe, part, None) is None:
            raise UserError(f"{type(pipe).__name__} has no {part}, which training needs: choose another base.")
    original: Any = pipe.encode_prompt  # pyright: ignore[reportAttributeAccessIssue]
    answers = []

    def record(*args: Any, **kwargs: Any) -> Any:
        answers.append(original(*args, **kwargs))
        return answers[-1]

    with replaced(pipe, "encode_prompt", record):
        condition(pipe, prompt, resolution)
    return answers[-1]


@contextlib.contextmanager
def replayed(pipe: DiffusionPipeline, answer: Any) -> Iterator[None]:
    """Inside the block the pipeline draws the prompt of `answer`, a result of `encode_prompt`, without its text
    encoder."""
    with replaced(pipe, "encode_prompt", lambda *args, **kwargs: answer):
        yield


def check(pipe: DiffusionPipeline, objective: Objective, prompt: str, answer: Any, resolution: int) -> None:
    """Raise `UserError` unless training agrees with how the pipeline draws `prompt`, for which `encode_prompt` gave
    `answer`. In float32 on every base: the sampler would amplify the rounding of half precision."""
    with replayed(pipe, cast(answer, torch.float32)):
        observed.check(pipe, objective, prompt, resolution)


def collate(conditionings: list[Any]) -> Any:
    """Join conditionings of one caption each to a batch."""
    first = conditionings[0]
    if isinstance(first, Tensor):
        return torch.cat(conditionings)
    if isinstance(first, dict):
        return {name: collate([conditioning[name] for conditioning in conditionings]) for name in first}
    return first


def rows(conditioning: Any, chosen: slice) -> Any:
    """Some rows of a batch of conditionings: `collate` undone."""
    if isinstance(conditioning, Tensor):
        return conditioning[chosen]
    if isinstance(conditioning, dict):
        return {name: rows(value, chosen) for name, value in conditioning.items()}
    return conditioning


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
    model: Any, examples: Noised, conditionings: list[Conditioning], dtype: torch.dtype
) -> Float[Tensor, "batch out_channels height width"]:
    """The model's output for noised examples, each with its conditioning, computed in `dtype`."""
    conditioning = cast(collate(conditionings), dtype)
    return model(examples.noisy.to(dtype), timestep=examples.timesteps, **conditioning, return_dict=False)[0]


def release(pipe: DiffusionPipeline) -> None:
    """Free the memory of the text encoders and the autoencoder: all their outputs are cached."""
    for name in pipe.components:
        if name.startswith(("text_encoder", "vae", "image_encoder")):
            setattr(pipe, name, None)


@dataclass
class Cache:
    """All outputs of the text encoder and the autoencoder that a run needs."""

    latents: Latents
    conditionings: list[Conditioning]
    empty: Conditioning
    samples: dict[str, Any]  # prompt: what encode_prompt returned
    images: list[Image.Image]
    backgrounds: list[str]  # colours that suit the subject, on a base that draws plain ones
    misfits: list[str]  # what makes the images hard to learn for the base
    class_latents: Latents | None = None
    class_conditioning: Conditioning = field(default_factory=dict)


def encode(
    pipe: DiffusionPipeline,
    config: CustomizeConfig,
    resolution: int,
    images: list[Image.Image],
    sides: list[int],
    captions: list[str],
    accelerator: Accelerator,
) -> Cache:
    """Encode everything that a run will need, then free the memory of the encoders.

    `sides` are the shorter sides of the images as they were given. Each part is on the accelerator while it works, and
    at the end only the denoiser. Raises `UserError` if the pipeline does not draw as training assumes (see `observed`).
    """
    device = accelerator.device
    if device.type != "cpu":
        pipe.enable_model_cpu_offload(device=device) if pipe.model_cpu_offload_seq else pipe.to(device)
    backgrounds = clear_backgrounds(images) if config.base == bases.MOJI else []
    prompts = config.sample_prompts or tuple(config.prompts(backgrounds, SAMPLES))
    samples = {prompt: encode_prompt(pipe, prompt, resolution) for prompt in prompts}
    check(pipe, objective_for(pipe.scheduler, config.snr_gamma), prompts[0], samples[prompts[0]], resolution)
    class_prompt = config.class_prompt or f"a {config.class_name}"
    all_captions = ["", *captions, *([class_prompt] if config.prior_preservation else [])]
    known = {caption: encode_caption(pipe, caption, resolution) for caption in dict.fromkeys(all_captions)}
    pipe.maybe_free_model_hooks()
    latents = encode_images(pipe, images)
    misfits = fitting.misfits(pipe, config.base, sides, images, latents.mean)
    conditionings = [known[caption] for caption in captions]
    cache = Cache(latents, conditionings, known[""], samples, images, backgrounds, misfits)
    if config.prior_preservation:
        pipe.maybe_free_model_hooks()
        drawn = _class_images(pipe, config, class_prompt, resolution, accelerator)
        cache.class_latents = encode_images(pipe, drawn)
        cache.class_conditioning = known[class_prompt]
    pipe.remove_all_hooks()
    release(pipe)
    denoiser(pipe).to(device)
    return cache


def _class_images(pipe, config: CustomizeConfig, prompt: str, resolution: int, accelerator: Accelerator) -> list:
    """Images of the class, drawn by the base; those that an earlier start drew are kept."""
    files = [config.out / "class_images" / f"{index:04d}.png" for index in range(config.num_class_images)]
    for index, file in enumerate(files):
        if accelerator.is_main_process and not file.is_file():
            (drawing,) = sampling.generate(pipe, prompt, seed=config.seed + index, resolution=resolution)
            manifest.record(config.out, file)
            sampling.save_png(drawing.image, file, drawing.settings)
    accelerator.wait_for_everyone()
    return [square(read_image(file), resolution) for file in files]
