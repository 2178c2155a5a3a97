"""The families of base models that people fine-tune, and all in which they differ.

    family = family_of(pipe)
    family.autoencoding     an image → plain latents
    family.layout           plain latents → what the denoiser takes, and back
    family.clock            the sampler's timesteps → the denoiser's times
    family.sign             what the denoiser gives is sign · the target of training
    family.tokens           where the image's tokens lie among those of a layer

A family is found by the pipeline's class or, where there is only a denoiser, by the denoiser's. Everything else, the
conditioning among it, is observed from the pipeline (`training.encoding`); that training then agrees with drawing is
checked before every run (`training.observed`). A pipeline of no family is not trained.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from atomtune.bases.layouts import Autoencoding, BatchNormed, Latents, Layout, Listed, OneFrame, Packed
from atomtune.bases.opening import denoiser
from atomtune.bases.tokens import CROSS_ATTENTION, ByIds, ByMask, ByShapes, ImageFirst, Tokens
from atomtune.errors import UserError

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


@dataclass(frozen=True)
class Clock:
    """The denoiser's time, from the sampler's timesteps t: 1000 is noise and 0 the image."""

    length: int = 1000
    """The time of t = 1000."""
    backwards: bool = False
    """Noise is at 0, and the image at `length`."""

    def times(self, timesteps: Tensor) -> Tensor:
        """The denoiser's times of the sampler's timesteps."""
        if self.length != 1000:
            timesteps = timesteps * (self.length / 1000)
        return self.length - timesteps if self.backwards else timesteps

    def timesteps(self, times: Tensor) -> Tensor:
        """`times` undone. Rounded to thousandths, so that what went both ways is as it was."""
        if self == Clock():
            return times
        timesteps = (self.length - times if self.backwards else times) * (1000 / self.length)
        return timesteps.round(decimals=3) if timesteps.dtype == torch.float32 else timesteps


@dataclass(frozen=True)
class Family:
    """What one family of base models does in its own way."""

    name: str
    pipelines: tuple[str, ...]
    """Classes of diffusers that draw from a prompt alone; their subclasses too."""
    denoiser: str
    """The denoiser's class."""
    layout: Layout = field(default_factory=Layout)
    autoencoding: Autoencoding = field(default_factory=Autoencoding)
    clock: Clock = Clock()
    sign: int = 1
    tokens: Tokens = field(default_factory=Tokens)
    time: str = "timestep"
    """The denoiser's argument for the time."""
    unguided: Mapping[str, Any] = field(default_factory=lambda: {"guidance_scale": 1.0})
    """Arguments with which the pipeline draws without classifier-free guidance. For a denoiser that was distilled to
    take its guidance as a number, that is the number of diffusers' DreamBooth scripts, 3.5."""
    density: str = "logit_normal"
    """How flow matching draws its timesteps: as the family's DreamBooth script does."""
    shared: frozenset[str] = frozenset()
    """Arguments of the denoiser that have no dimension for the batch."""
    masks: Mapping[str, str] = field(default_factory=dict)
    """Arguments that are as long as the text, and their masks; a mask that is None has all ones."""
    prompt_first: bool = False
    """Of the two halves of guidance in one batch, that of the prompt is the first."""
    guided_apart: bool = False
    """Guidance, where there is any, runs the denoiser twice in each step, first with the prompt, then without."""

    def predict(self, model: Any, noisy: Latents, timesteps: Tensor, conditioning: Mapping[str, Any]) -> Tensor:
        """What the denoiser, called as its pipeline calls it, says of noisy latents, as plain
        latents and with the target's sign."""
        times = {self.time: self.clock.times(timesteps)}
        output = model(self.layout.pack(noisy), **times, **conditioning, return_dict=False)[0]
        return self.signed(self.layout.unpack(output, (noisy.shape[2], noisy.shape[3])))

    def signed(self, output: Latents) -> Latents:
        """The denoiser's output with the sign of the target, or the target with that of the output."""
        return output if self.sign > 0 else -output

    def size(self, pipe: Any, height: int, width: int) -> tuple[int, int]:
        """Height and width of the plain latents of an image of so many pixels."""
        pixels = pipe.vae_scale_factor * self.autoencoding.patch
        return height // pixels, width // pixels


UNIFORM = "none"
UNIT, BACKWARDS = Clock(1), Clock(1, backwards=True)
SINGLE_STREAM = r"^single_transformer_blocks\."
FAMILIES = (
    Family(
        "PixArt-α, PixArt-Σ",
        ("PixArtAlphaPipeline", "PixArtSigmaPipeline"),
        "PixArtTransformer2DModel",
        tokens=Tokens(CROSS_ATTENTION),
    ),
    Family(
        "Stable Diffusion 1.5, SDXL",
        ("StableDiffusionPipeline", "StableDiffusionXLPipeline"),
        "UNet2DConditionModel",
        tokens=Tokens(CROSS_ATTENTION, levels=4),
    ),
    Family("Stable Diffusion 3", ("StableDiffusion3Pipeline",), "SD3Transformer2DModel"),
    Family(
        "Flux.1",
        ("FluxPipeline",),
        "FluxTransformer2DModel",
        layout=Packed(2),
        clock=UNIT,
        tokens=ByIds(joint=SINGLE_STREAM),
        unguided={"guidance_scale": 3.5},
        density=UNIFORM,
        shared=frozenset({"img_ids", "txt_ids"}),
        guided_apart=True,
    ),
    Family(
        "Flux.2",
        ("Flux2Pipeline",),
        "Flux2Transformer2DModel",
        layout=Packed(1),
        autoencoding=BatchNormed(),
        clock=UNIT,
        tokens=ByIds(joint=SINGLE_STREAM),
        unguided={"guidance_scale": 3.5},
        density=UNIFORM,
        guided_apart=True,
    ),
    Family(
        "Flux.2 klein",
        ("Flux2KleinPipeline",),
        "Flux2Transformer2DModel",
        layout=Packed(1),
        autoencoding=BatchNormed(),
        clock=UNIT,
        tokens=ByIds(joint=SINGLE_STREAM),
        density=UNIFORM,
        guided_apart=True,
    ),
    Family(
        "Qwen-Image",
        ("QwenImagePipeline",),
        "QwenImageTransformer2DModel",
        layout=Packed(2),
        autoencoding=OneFrame(),
        clock=UNIT,
        tokens=ByShapes(),
        unguided={"true_cfg_scale": 1.0},
        density=UNIFORM,
        masks={"encoder_hidden_states": "encoder_hidden_states_mask"},
        guided_apart=True,
    ),
    Family(
        "Z-Image",
        ("ZImagePipeline",),
        "ZImageTransformer2DModel",
        layout=Listed(),
        clock=BACKWARDS,
        sign=-1,
        tokens=ImageFirst(joint=r"^(noise_refiner|layers)\."),
        time="t",
        unguided={"guidance_scale": 0.0},
        density=UNIFORM,
        prompt_first=True,
    ),
    Family(
        "Sana",
        ("SanaPipeline",),
        "SanaTransformer2DModel",
        tokens=Tokens(CROSS_ATTENTION),
        density=UNIFORM,
    ),
    Family(
        "Lumina 2",
        ("Lumina2Pipeline",),
        "Lumina2Transformer2DModel",
        clock=BACKWARDS,
        sign=-1,
        tokens=ByMask(joint=r"^layers\."),
        density=UNIFORM,
        guided_apart=True,
    ),
    Family(
        "AuraFlow",
        ("AuraFlowPipeline",),
        "AuraFlowTransformer2DModel",
        clock=UNIT,
        tokens=Tokens(joint=SINGLE_STREAM),
    ),
)


def family_of(pipe: DiffusionPipeline) -> Family:
    """The family of a pipeline. Raises `UserError` for a pipeline of none."""
    model, vae = denoiser(pipe), getattr(pipe, "vae", None)
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    return family_of_class(type(pipe), type(model), model.config, vae.config if vae is not None else {})


def family_of_class(
    pipeline: type, model: type | None, config: Mapping[str, Any], autoencoder: Mapping[str, Any]
) -> Family:
    """The same, of a pipeline's class, its denoiser's class, and the configurations of denoiser and autoencoder."""
    if family := _find(pipeline, lambda family: family.pipelines):
        return family
    nearest, why = model and _find(model, lambda family: (family.denoiser,)), "has the same denoiser"
    channels, own = config.get("in_channels"), autoencoder.get("latent_channels", autoencoder.get("z_dim"))
    if nearest is None and isinstance(channels, int) and channels in (own, 4 * (own or 0)):
        packed = channels != own
        nearest = next(family for family in FAMILIES if isinstance(family.layout, Packed) == packed)
        why = f"too gives its denoiser {'four times ' if packed else ''}as many channels as its autoencoder has"
    if nearest is None and model is not None:
        unet = "UNet" in model.__name__
        nearest = next(family for family in FAMILIES if ("UNet" in family.denoiser) == unet)
        why = f"has {'a UNet' if unet else 'a transformer'} too"
    if nearest is None:
        said = f"those that can are {', '.join(dict.fromkeys(family.name for family in FAMILIES))}"
    else:
        said = f"the nearest one that can is {nearest.name} ({', '.join(nearest.pipelines)}), which {why}"
    raise UserError(f"{pipeline.__name__} is no base that can be trained; {said}.")


def family_of_denoiser(model: Any) -> Family | None:
    """The family of a denoiser, None if it has none. Those that share one differ in nothing that a denoiser shows."""
    return _find(type(model), lambda family: (family.denoiser,))


def _find(kind: type, names: Callable[[Family], tuple[str, ...]]) -> Family | None:
    """The first family of whose classes this is one, or a subclass of one."""
    classes = {cls.__name__ for cls in kind.__mro__}
    return next((family for family in FAMILIES if classes & {*names(family)}), None)
