"""Will it fit the card? The memory of `customize` and of drawing for a base, by kind of adapter and by option.

Nothing is loaded and nothing computed: see `estimates`. `customize` has one part of a base on the card at a time, so it
needs the largest of encoding (each text encoder, the autoencoder), training, and the samples that it draws on the way.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from atomtune.adapters.targets import TARGETS
from atomtune.bases import MOJI
from atomtune.bases.quantizing import refuse_kind
from atomtune.errors import UserError
from atomtune.planning import estimates
from atomtune.planning.estimates import Adapted, Memory
from atomtune.planning.inputs import Step
from atomtune.planning.parts import Parts, find_parts
from atomtune.sizes import Size
from atomtune.training.config import CustomizeConfig
from atomtune.training.recipes import configure, recipe_for, recipe_name_for

GIB = 1024**3
CARDS = (8, 12, 16, 24, 48, 80)
"""Memory of the cards that people have, in GiB."""

CONTEXT = round(0.6 * GIB)
"""Bytes that CUDA and its libraries take before the first tensor."""
FRAGMENTATION = 0.05
"""Share of the peak that is lost between blocks of memory, and to the workspaces of kernels."""


@dataclass(frozen=True)
class Way:
    """Options that save memory: of `customize` all, of `generate` the last two."""

    gradient_checkpointing: bool = False
    quantize: str | None = None
    offload: str | None = None

    def __str__(self) -> str:
        """As it stands in a table."""
        words = ["checkpointing"] * self.gradient_checkpointing + [f"{self.quantize} base"] * bool(self.quantize)
        words += [f"offload {self.offload}"] * bool(self.offload)
        return ", ".join(words) or "plain"

    @property
    def flags(self) -> str:
        """As it is typed."""
        return " ".join(
            ["--gradient-checkpointing"] * self.gradient_checkpointing
            + [f"--quantize {self.quantize}"] * bool(self.quantize)
            + [f"--offload {self.offload}"] * bool(self.offload)
        )


MODEL = "model"
WAYS = (Way(), *(Way(True, kind, offload) for kind in (None, "int8", "nf4") for offload in (None, MODEL)))
"""Of training, from the fastest to the smallest. All kinds of offloading take as much memory in training."""
DRAWING = tuple(Way(False, kind, offload) for kind in (None, "int8", "nf4") for offload in (None, MODEL))
"""Of `generate`, from the fastest to the smallest."""


@dataclass(frozen=True)
class Need:
    """The memory of `customize` with one adapter, trained in one way."""

    adapter: str
    way: Way
    encoding: dict[str, Memory]
    """By part: "text_encoder", "vae"."""
    training: Memory
    samples: Memory

    @property
    def peak(self) -> int:
        """Bytes at the highest moment of the run."""
        return max(each.peak for each in (*self.encoding.values(), self.training, self.samples))

    @property
    def card(self) -> int:
        """Bytes that a card must have free: the peak, with the allowance for what is not counted."""
        return with_allowance(self.peak)

    @property
    def without_activations(self) -> int:
        """Bytes that a card must have free for images of any size."""
        frozen = [dataclasses.replace(each, activations=0) for each in (self.training, self.samples)]
        return with_allowance(max(each.peak for each in frozen))


@dataclass(frozen=True)
class Drawing:
    """The memory of `generate` with one adapter, in one way."""

    adapter: str
    way: Way
    memory: Memory

    @property
    def card(self) -> int:
        """As that of `Need`."""
        return with_allowance(self.memory.peak)


@dataclass(frozen=True)
class MemoryPlan:
    """What a base needs at a resolution, for each adapter and way of training."""

    base: str
    resolution: int | str
    """In pixels: of a square its side, else WIDTHxHEIGHT."""
    batch_size: int
    dtype: str
    needs: list[Need]
    drawings: list[Drawing]
    options: dict[str, dict[str, Any]]
    """The options of `customize` that give each adapter."""

    def fitting(self, adapter: str, gib: int | float) -> Need | None:
        """The first way of training that fits a card of so many GiB."""
        return next((need for need in self.needs if need.adapter == adapter and need.card <= gib * GIB), None)

    def drawing(self, adapter: str, gib: int | float) -> Drawing | None:
        """The first way of drawing that fits a card of so many GiB."""
        own = (each for each in self.drawings if each.adapter == adapter)
        return next((each for each in own if each.card <= gib * GIB), None)

    @property
    def adapters(self) -> list[str]:
        """Names of the adapters."""
        return list(self.options)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, in bytes, as JSON holds them."""
        plain = dataclasses.asdict(self)
        for need, given in zip(self.needs, plain["needs"]):
            given |= {"peak": need.peak, "card": need.card}
        return plain


def with_allowance(peak: int) -> int:
    """Bytes that a card must have free for a peak of so many, with what is not counted."""
    return round(peak * (1 + FRAGMENTATION)) + CONTEXT


def plan_memory(
    base: str | Path,
    resolution: int | str | Size | None = None,
    batch_size: int = 1,
    dtype: torch.dtype = torch.bfloat16,
    quantize: str | None = None,
) -> MemoryPlan:
    """What `customize` and drawing need on a card, without loading weights: for attention atoms, where the base can
    carry them, linear atoms, LoRA, and the base's recipe if there is one.

    `base` is "moji", one of the bases whose configurations ship with the package, a folder that holds a diffusers
    pipeline (its configurations suffice), or a hub name. With `quantize` (int8, fp8 or nf4), the base is
    quantized so in every way that is planned. moji is never quantized. Raises `UserError`.
    """
    ways, draw_ways = WAYS, DRAWING
    if base == MOJI:
        ways, draw_ways = (tuple(way for way in some if way.quantize is None) for some in (WAYS, DRAWING))
    if quantize is not None:
        refuse_kind(quantize, str(base))
        ways = (Way(False, quantize), Way(True, quantize), Way(True, quantize, MODEL))
        draw_ways = (Way(False, quantize), Way(False, quantize, MODEL))
    parts = find_parts(base)
    size = None if resolution is None else Size.of(resolution)
    _check(size, batch_size)
    sizes = Sizes.of(parts, size, dtype)
    found: list[Need] = []
    drawings, named = [], adapters(parts)
    for name, options in named.items():
        config = _config(parts.base, options | {"batch_size": batch_size})
        plain = sizes.adapted(config, checkpointing=False)
        found += needs(sizes, name, config, plain, ways)
        drawings += [Drawing(name, way, memory) for way, memory in sizes.drawings(plain, draw_ways)]
    precision = str(dtype).removeprefix("torch.")
    return MemoryPlan(parts.base, sizes.resolution.plain, batch_size, precision, found, drawings, named)


def _check(size: Size | None, batch_size: int) -> None:
    sides = [("resolution", side, 8) for side in (size.shape if size is not None else ())]
    for name, value, minimum in (*sides, ("batch_size", batch_size, 1)):
        if value < minimum:
            raise UserError(f"{name} must be at least {minimum}, got {value}.")


def _config(base: str, options: Mapping[str, Any]) -> CustomizeConfig:
    return configure(images="images", class_name="subject", out="run", **{"base": base} | dict(options))


def adapters(parts: Parts) -> dict[str, dict[str, Any]]:
    """Options of `customize` by the name of the adapter that they give."""
    model = parts.denoiser.build(torch.bfloat16)
    attention = _attention(model)
    values = [f"{name}.{end}" for name in attention for end in ("to_v", "add_v_proj") if _has(model, f"{name}.{end}")]
    found: dict[str, dict[str, Any]] = {}
    recipe = recipe_for(parts.base)
    if "target_modules" in recipe:
        found[f"recipe {recipe_name_for(parts.base)}"] = {}  # it acts where nothing else is given
    if TARGETS.get(parts.denoiser.name) == attention and recipe.get("target_modules") != attention:
        found["attention atoms"] = {"method": "atoms", "target_modules": attention}
    found["linear atoms"] = {"method": "atoms", "target_modules": values}
    found["LoRA"] = {"method": "lora", "target_modules": attention}
    return found


def _attention(model: nn.Module) -> list[str]:
    """Attention modules by the end of their names: self-attention alone where the text has its own, as in the paper."""
    names = {name.rpartition(".")[2] for name, module in model.named_modules() if hasattr(module, "to_v")}
    return ["attn1"] if "attn1" in names else sorted(names)


def _has(model: nn.Module, end: str) -> bool:
    return any(name.endswith(f".{end}") for name, _ in model.named_modules())


@dataclass(frozen=True)
class Sizes:
    """A base at a resolution: what does not depend on the adapter."""

    parts: Parts
    resolution: Size
    dtype: torch.dtype
    latents: tuple[int, int, int]
    autoencoder: Memory
    """It encodes, in float32."""
    text_encoders: dict[str, dict[str | None, Memory]]
    """By part, by how it is quantized."""
    decoding: Memory
    """The autoencoder decodes, in the precision of the base."""
    decoding_samples: Memory
    """In float32 under autocast, as training draws its samples."""

    @classmethod
    def of(cls, parts: Parts, resolution: Size | None, dtype: torch.dtype) -> Sizes:
        """Raises `UserError` if there is no resolution, or the base cannot draw it."""
        size = parts.resolution if resolution is None else resolution
        if size is None:
            raise UserError(f"{parts.base} does not define the size of its images: give a resolution in pixels.")
        size = Size.of(size)
        autoencoder, latents = estimates.encode_image(parts.autoencoder, size)
        _check_multiple(parts, size, latents)
        encoders = parts.text_encoders.items()
        texts = {name: estimates.encode_text(part, parts.tokens, dtype) for name, part in encoders}
        autocast = None if dtype == torch.float32 else dtype
        decoding = estimates.decode_image(parts.autoencoder, latents, dtype, None)
        samples = estimates.decode_image(parts.autoencoder, latents, torch.float32, autocast)
        return cls(parts, size, dtype, latents, autoencoder, texts, decoding, samples)

    def encoding(self, kind: str | None) -> dict[str, Memory]:
        """Each part that encodes, by itself."""
        return {name: by_kind[kind] for name, by_kind in self.text_encoders.items()} | {"vae": self.autoencoder}

    def adapted(self, config: CustomizeConfig, checkpointing: bool) -> Adapted:
        """The denoiser with the adapter of `config`."""
        changed = dataclasses.replace(config, gradient_checkpointing=checkpointing)
        return Adapted.of(self.parts.denoiser, changed, self.dtype)

    def training(self, adapted: Adapted, config: CustomizeConfig) -> Memory:
        """One optimizer step."""
        return adapted.train(self.step(examples(config)))

    def denoising(self, adapted: Adapted) -> Memory:
        """One denoising step of an image that is drawn during training, beside the optimizer's state."""
        activations = adapted.draw(self.step(1 + self.parts.guided), adapted.autocast)
        return dataclasses.replace(adapted.frozen(), activations=activations)

    def samples(self, denoising: Memory, offloaded: bool) -> Memory:
        """An image drawn during training: the denoiser, then the autoencoder beside it, or with offloading without."""
        beside = Memory(0, 0, denoising.optimizer) if offloaded else denoising
        weights = beside.weights + self.decoding_samples.weights
        decoding = dataclasses.replace(beside, weights=weights, activations=self.decoding_samples.activations)
        return max(denoising, decoding, key=lambda each: each.peak)

    def drawings(self, adapted: Adapted, ways: Sequence[Way]) -> list[tuple[Way, Memory]]:
        """`atomtune generate` in each way: with all parts on the card, or one after the other."""
        frozen = adapted.frozen()
        whole = Memory(frozen.weights, frozen.adapter, activations=adapted.draw(self.step(1 + self.parts.guided), None))
        found = []
        for way in ways:
            denoising = whole if way.quantize is None else estimates.quantized(whole, adapted.model, way.quantize)
            texts = [by_kind[way.quantize] for by_kind in self.text_encoders.values()]
            each = [*texts, denoising, self.decoding]
            together = Memory(
                sum(part.weights for part in each),
                frozen.adapter,
                activations=max(part.activations for part in each),
            )
            found.append((way, max(each, key=lambda part: part.peak) if way.offload else together))
        return found

    def step(self, images: int) -> Step:
        return Step(images, *self.latents, self.parts.tokens, self.dtype)


def needs(sizes: Sizes, name: str, config: CustomizeConfig, plain: Adapted, ways: Sequence[Way] = WAYS) -> list[Need]:
    """What `customize` needs in each of `ways`; `plain` is the denoiser with the adapter, without checkpointing."""
    denoising = sizes.denoising(plain)
    training: dict[bool, Memory] = {}
    found = []
    for way in ways:
        if way.gradient_checkpointing not in training:
            adapted = sizes.adapted(config, way.gradient_checkpointing)
            training[way.gradient_checkpointing] = sizes.training(adapted, config)
        both = [training[way.gradient_checkpointing], denoising]
        if way.quantize is not None:
            both = [estimates.quantized(each, plain.model, way.quantize) for each in both]
        samples = sizes.samples(both[1], way.offload is not None)
        found.append(Need(name, way, sizes.encoding(way.quantize), both[0], samples))
    return found


def examples(config: CustomizeConfig) -> int:
    """Images in one forward pass, with those of the class and of other prompts."""
    count = config.batch_size * (2 if config.prior_preservation else 1)
    return count + (math.ceil(config.batch_size * config.preserve_share) if config.preserve else 0)


def side_multiple(parts: Parts, size: Size, latents: tuple[int, int, int]) -> int:
    """The side of a token in pixels, of which each side of an image is a multiple; `latents` are those of `size`."""
    config = parts.denoiser.config
    packed = config.get("in_channels") == 4 * latents[0]  # 2 × 2 latents in a token, by the pipeline
    patch = 2 if packed else config.get("patch_size") or min(config.get("all_patch_size") or [1])
    return 2 ** round(math.log2(size.height / latents[1])) * patch  # autoencoders halve the side, again and again


def _check_multiple(parts: Parts, size: Size, latents: tuple[int, int, int]) -> None:
    """Raise `UserError` unless the sides of an image are multiples of that of a token."""
    multiple = side_multiple(parts, size, latents)
    if size.width % multiple or size.height % multiple:
        near = Size(*(max(1, round(side / multiple)) * multiple for side in (size.width, size.height)))
        raise UserError(f"resolution must be a multiple of {multiple} with this base, got {size}: try {near}.")
