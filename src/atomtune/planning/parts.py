"""The parts of a base as configurations, without weights: of a known base, a folder, a hub name or an open pipeline.

Known bases ship with the package, one file each in `configs/`, so that a plan needs neither the network nor a download.
`configs/parts.json` holds text encoders and autoencoders that several bases share.
"""

from __future__ import annotations

import functools
import inspect
import json
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from atomtune import bases
from atomtune.bases.parts import OF_A_FOLDER, Part, configurations, parts_in, refuse_other_family
from atomtune.errors import UserError
from atomtune.files import expanded
from atomtune.sizes import Size

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

CONFIGS = resources.files("atomtune.planning") / "configs"
SHARED = "parts.json"


@dataclass(frozen=True)
class Parts:
    """The models of a pipeline, and what of the pipeline decides on the sizes of their inputs."""

    base: str
    pipeline: str
    denoiser: Part
    autoencoder: Part
    text_encoders: dict[str, Part]
    resolution: int | Size | None
    tokens: int
    """Length of a text, in tokens of the denoiser: the pipeline's longest."""

    @property
    def guided(self) -> bool:
        """Whether the pipeline draws with and without the prompt in one pass (classifier-free guidance)."""
        return self.pipeline not in ONE_BY_ONE


CLIP_TOKENS = 77
ONE_BY_ONE = {"FluxPipeline", "Flux2Pipeline", "Flux2KleinPipeline", "QwenImagePipeline", "Lumina2Pipeline"}
"""Pipelines that call their denoiser for one prompt at a time, with guidance inside it or in two calls."""


def known_bases() -> list[str]:
    """Hub names of the bases whose configurations ship with the package."""
    return sorted(_known())


def find_parts(name_or_path: str | Path) -> Parts:
    """The parts of a base: "moji", a known base, a folder of a diffusers pipeline (of which only `model_index.json` and
    the `config.json` files are read), or a hub name, of which the same files are fetched. Raises `UserError`."""
    name = str(name_or_path)
    if name == bases.MOJI:
        pipe = bases.load_base(name)
        return replace(parts_of(pipe), resolution=bases.native_resolution(pipe))
    if (expanded(name) / "model_index.json").is_file():
        return _from_folder(name, expanded(name))
    if (known := _known().get(name)) is not None:
        return _from_file(name, known)
    if bases.is_hub_name(name):
        return _from_folder(name, _fetched(name))
    raise UserError(
        f"there is no base {name!r}: expected {bases.MOJI!r}, a folder that holds a diffusers pipeline "
        f"(model_index.json), a hub name, or one of {', '.join(known_bases())}."
    )


def parts_of(pipe: DiffusionPipeline) -> Parts:
    """The parts of an open pipeline, without a resolution."""
    models = {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
    parts = {name: Part.of(model) for name, model in models.items()}
    return _joined(pipe.name_or_path, type(pipe), parts, None)


@functools.cache
def _known() -> dict[str, dict[str, Any]]:
    """The content of each file in `configs/`, by the hub names it is for."""
    found = {}
    for file in CONFIGS.iterdir():
        if file.name.endswith(".json") and file.name != SHARED:
            content = json.loads(file.read_text(encoding="utf-8"))
            found |= dict.fromkeys(content["names"], content)
    return found


def _from_file(name: str, content: dict[str, Any]) -> Parts:
    import diffusers

    shared = json.loads((CONFIGS / SHARED).read_text(encoding="utf-8"))
    chosen = {each: shared[part] if isinstance(part, str) else part for each, part in content["parts"].items()}
    parts = {each: Part(part["library"], part["class"], part["config"]) for each, part in chosen.items()}
    return _joined(name, getattr(diffusers, content["pipeline"]), parts, content["resolution"])


def _from_folder(name: str, folder: Path) -> Parts:
    try:
        kind, parts = parts_in(folder)
        joined = _joined(name, kind, parts, None)
        own = _own_resolution(kind, joined, "unet" if "unet" in parts else "transformer")
    except UserError:
        raise
    except OF_A_FOLDER as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{name} could not be read as a diffusers pipeline ({reason:.200}).") from error
    return replace(joined, resolution=own)


def _own_resolution(kind: type[Any], parts: Parts, denoiser: str) -> Size | None:
    """The size of the images that a pipeline draws by default, if it defines one: asked of a pipeline of this class
    that has no more than a denoiser and an autoencoder, without values."""
    accepted = inspect.signature(kind.__init__).parameters
    options = {name: None for name, each in accepted.items() if name != "self" and each.default is each.empty}
    if "requires_safety_checker" in accepted:
        options |= {"requires_safety_checker": False}  # else it warns that there is none
    models = {denoiser: parts.denoiser.build(torch.bfloat16), "vae": parts.autoencoder.build(torch.bfloat16)}
    try:
        return bases.native_resolution(kind(**options | models))
    except (UserError, AttributeError, TypeError):  # it defines none, or is of a class that asks its other parts
        return None


def _fetched(name: str) -> Path:
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return configurations(name)
    except (OSError, HfHubHTTPError, LocalEntryNotFoundError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"the configuration of {name!r} could not be fetched ({reason:.120}). Without the network, give a folder "
            f"or one of {', '.join(known_bases())}."
        ) from error


def _joined(base: str, pipeline: type[Any], parts: dict[str, Part], resolution: int | Size | None) -> Parts:
    refuse_other_family(pipeline, parts)
    denoiser = parts.get("transformer") or parts.get("unet")
    if denoiser is None or "vae" not in parts:
        raise UserError(f"{base} has no denoiser or no autoencoder: expected a pipeline that draws images.")
    encoders = {name: part for name, part in parts.items() if name.startswith("text_encoder")}
    accepted = inspect.signature(pipeline.__call__).parameters
    tokens = accepted["max_sequence_length"].default if "max_sequence_length" in accepted else CLIP_TOKENS
    if pipeline.__name__ == "StableDiffusion3Pipeline":
        tokens += CLIP_TOKENS  # CLIP's tokens before T5's
    return Parts(base, pipeline.__name__, denoiser, parts["vae"], encoders, resolution, tokens)
