"""Find the parts of a base, and what it needs to draw.

A base is any diffusers pipeline whose denoiser is its `transformer` or `unet`. No module depends on
one base: sizes, defaults and text handling are read from the pipeline itself.
"""

from __future__ import annotations

import hashlib
import inspect
import math
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch

from atomtune.errors import UserError
from atomtune.sizes import GivenSize, Size

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

MOJI = "moji"
LARGEST = 8192
"""Pixels on a side that no base exceeds; far larger images fill the memory before anything is drawn."""
OFFLOADS = ("model", "sequential", "group")
"""How diffusers moves the parts of a pipeline to the accelerator while they work."""


def precision_and_device(pipe: DiffusionPipeline) -> dict[str, str]:
    """`dtype` of the denoiser and `device` on which it runs, for settings and summaries: {"dtype": "bfloat16", ...}."""
    own: Any = pipe
    return {
        "dtype": str(denoiser(pipe).dtype).removeprefix("torch."),
        "device": str(own._execution_device),  # under offload the weights are elsewhere
    }


def refuse_offload(kind: str | None, device: torch.device) -> None:
    """Raise `UserError` if there is no such way to offload, or nothing to offload from."""
    if kind is not None and kind not in OFFLOADS:
        raise UserError(f"offload must be one of {', '.join(OFFLOADS)}, got {kind!r}.")
    if kind is not None and device.type == "cpu":
        raise UserError(
            "offload moves the parts of a base to an accelerator while they work, and the device is cpu: leave it out."
        )


def offload(pipe: Any, device: torch.device, kind: str = "model") -> None:
    """Have the parts of the pipeline, which is on the CPU, on the accelerator only while they work; on a CPU nothing
    happens.

    model        one model at a time
    sequential   one layer at a time: least memory, slowest
    group        one layer at a time, the next of which comes while the last one computes, where streams are (CUDA)
    """
    if device.type == "cpu":
        return
    if kind == "sequential":
        pipe.enable_sequential_cpu_offload(device=device)
    elif kind == "group":
        pipe.remove_all_hooks()  # as the others do by themselves
        pipe.enable_group_offload(device, offload_type="leaf_level", use_stream=device.type == "cuda")
    elif pipe.model_cpu_offload_seq:
        pipe.enable_model_cpu_offload(device=device)
    else:
        pipe.to(device)


def denoiser(pipe: DiffusionPipeline) -> Any:
    """The network that is adapted: `pipe.transformer`, or `pipe.unet` if there is no transformer."""
    return getattr(pipe, denoiser_name(pipe))


def set_denoiser(pipe: DiffusionPipeline, model: torch.nn.Module) -> None:
    """Make `model` (an adapted denoiser) the denoiser of the pipeline."""
    setattr(pipe, denoiser_name(pipe), model)


def denoiser_name(pipe: DiffusionPipeline) -> str:
    """The attribute of the pipeline that holds its denoiser. Raises `UserError` if there is none."""
    for name in ("transformer", "unet"):
        if isinstance(getattr(pipe, name, None), torch.nn.Module):
            return name
    raise UserError(f"{type(pipe).__name__} has neither a transformer nor a unet: there is nothing to adapt.")


def native_resolution(pipe: DiffusionPipeline) -> Size:
    """The size of the images that the base draws by default. Raises `UserError` if the base does
    not define it."""
    size = _default_resolution(pipe)
    if size is None:
        raise UserError(f"{type(pipe).__name__} does not define the size of its images: give a resolution in pixels.")
    return size


def _default_resolution(pipe: Any) -> Size | None:
    size = denoiser(pipe).config.get("sample_size") or getattr(pipe, "default_sample_size", None)
    factor = getattr(pipe, "vae_scale_factor", None)
    if size is None or factor is None:
        return None
    height, width = (size, size) if isinstance(size, int) else size
    return Size(width * factor, height * factor)


def _refuse_video(pipe: DiffusionPipeline) -> None:
    if "num_frames" in inspect.signature(type(pipe).__call__).parameters:
        raise UserError(f"{type(pipe).__name__} draws videos, not images: choose another base.")


def resolution_for(pipe: DiffusionPipeline, resolution: GivenSize | None = None) -> Size:
    """Width and height in pixels: `resolution`, or the base's default. Raises `UserError` for a resolution that the
    base cannot draw: each side must be a multiple of `side_multiple`, up to `LARGEST`.
    """
    _refuse_video(pipe)
    if resolution is None:
        return native_resolution(pipe)
    size, multiple = Size.of(resolution), side_multiple(pipe)
    if any(side < multiple or side % multiple for side in size.shape):
        near = Size(*(max(1, round(side / multiple)) * multiple for side in (size.width, size.height)))
        raise UserError(f"resolution must be a multiple of {multiple} with this base, got {size}: try {near}.")
    if max(size.shape) > LARGEST:
        raise UserError(f"resolution must be at most {LARGEST} pixels on a side, got {size}: no base draws so large.")
    return size


def side_multiple(pipe: DiffusionPipeline) -> int:
    """The pixels on a side of one token of the denoiser, of which each side of an image is a multiple. (Pipelines that
    pack 2 × 2 latents into a token show this in the factor of their image processor.)"""
    patch = getattr(denoiser(pipe).config, "patch_size", None)
    multiple = getattr(pipe, "vae_scale_factor", 1) * (patch if isinstance(patch, int) else 1)
    processor: Any = getattr(pipe, "image_processor", None)
    if processor is not None:
        multiple = math.lcm(multiple, processor.config.vae_scale_factor)
    return multiple


def call_options(pipe: DiffusionPipeline, resolution: GivenSize | None = None) -> dict[str, Any]:
    """Arguments for drawing images of a size; for everything else the pipeline's own defaults hold, and also for the
    size if the base does not define it.

    Raises `UserError` for a resolution that the base cannot draw, and for a pipeline that does not draw images.
    """
    _refuse_video(pipe)
    options: dict[str, Any] = {}
    if resolution is not None or _default_resolution(pipe) is not None:
        size = resolution_for(pipe, resolution)
        options |= {"height": size.height, "width": size.width}
    accepted = inspect.signature(type(pipe).__call__).parameters
    # PixArt's binning maps a size to one of a list for four known resolutions and refuses every other one.
    if "use_resolution_binning" in accepted:
        options["use_resolution_binning"] = False
    # Without its two packages diffusers leaves captions as they are too, but warns every time.
    if "clean_caption" in accepted and not (find_spec("bs4") and find_spec("ftfy")):
        options["clean_caption"] = False
    return options


def fingerprint(model: torch.nn.Module | torch.Tensor) -> list[float]:
    """Sixteen of the base's weights: enough to recognise the base under another path, name or precision.

    The first parameter is read, or is given, because adapters register their own after the layer they sit on.
    """
    first = (model if isinstance(model, torch.Tensor) else next(model.parameters())).detach().flatten()
    return first[:: max(1, len(first) // 16)][:16].float().cpu().tolist()


def base_hash(fingerprint: list[float]) -> str:
    """SHA-256 of a base's fingerprint in bfloat16, so that it is the same in most precisions."""
    return hashlib.sha256(torch.tensor(fingerprint).bfloat16().view(torch.int16).numpy().tobytes()).hexdigest()


def same_weights(expected: list[float], found: list[float]) -> bool:
    """Equal up to half precision (weights may have been stored in fp16 or bf16)."""
    if len(expected) != len(found):
        return False
    a, b = torch.tensor(expected), torch.tensor(found)
    return bool((a - b).norm() <= 0.02 * a.norm())
