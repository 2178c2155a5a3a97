"""What a base is, by its configurations and without its weights: its pipeline, its models, and whether all is there.

A hollow model has the class, the configuration, the shapes and the precision of the real one, and takes no memory: each
of its tensors is one zero that is seen as a whole tensor. A pipeline can do all with it but run it.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

from atomtune.bases.families import family_of_class
from atomtune.bases.opening import MOJI
from atomtune.errors import UserError

TEXT, IMAGES, DENOISER = "text_encoder", "vae", "denoiser"
"""The parts that are loaded and freed together: all text encoders, the autoencoder, and the denoiser."""
BEGIN = {TEXT: ("text_encoder", "image_encoder"), IMAGES: ("vae",), DENOISER: ("transformer", "unet")}
OF_A_FOLDER = (OSError, ValueError, TypeError, LookupError, AttributeError)
"""What libraries raise for a folder that holds what they do not expect."""
_DESCRIBING = {"tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"}
"""Files of a tokenizer that do not hold its vocabulary."""


def is_hub_name(name: str) -> bool:
    """Whether it has the form of one, and there is no such folder here."""
    return bool(re.fullmatch(r"[\w.-]+/[\w.-]+", name)) and not Path(name).exists()


EXPECTED = (
    f"expected {MOJI!r}, a folder that holds a diffusers pipeline (model_index.json), or a hub name such as "
    "'PixArt-alpha/PixArt-Sigma-XL-2-1024-MS'"
)


def refuse_missing(name: str) -> None:
    if not is_hub_name(name) and not (Path(name) / "model_index.json").is_file():
        raise UserError(f"there is no base model {name!r}: {EXPECTED}.")


def check_complete(folder: Path) -> None:
    """Raise `OSError` for what transformers would invent without a word: the vocabulary of a tokenizer, or the
    configuration of a model, whose file is missing."""
    parts_in(folder)
    for name, entry in _table(folder / "model_index.json").items():
        there = name.startswith("tokenizer") and isinstance(entry, list) and entry[:1] != [None]
        if there and {file.name for file in (folder / name).glob("*")} <= _DESCRIBING:
            raise FileNotFoundError(f"{folder / name} has no vocabulary, such as tokenizer.json")


def _table(file: Path) -> dict[str, Any]:
    """What a JSON file holds. Raises `OSError` or `ValueError`."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError(f"{file} is nested too deeply") from error
    if not isinstance(found, dict):
        raise ValueError(f"{file} does not hold names and values")
    return found


@contextlib.contextmanager
def refusing_unreadable(name: str) -> Iterator[None]:
    """Turn what diffusers and transformers raise for a base that cannot be read into a `UserError`."""
    from safetensors import SafetensorError

    try:
        yield
    except UserError:
        raise
    except (*OF_A_FOLDER, ImportError, SafetensorError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "mismatched" not in str(error):  # transformers: weights of other shapes
            raise
        reason = " ".join(str(error).split())
        raise UserError(f"the base model {name!r} could not be opened ({reason:.200}): {EXPECTED}.") from error


def configurations(name: str) -> Path:
    """The folder of a base; of a hub name one in which its configurations are, which alone are downloaded."""
    from huggingface_hub import snapshot_download

    if not is_hub_name(name):
        return Path(name)
    return Path(snapshot_download(name, allow_patterns=["model_index.json", "*/config.json"]))


def refuse_other_family(pipeline: type, parts: Mapping[str, Part]) -> None:
    """Raise `UserError` if a pipeline with these models is of no family."""
    model = next((parts[name] for name in BEGIN[DENOISER] if name in parts), None)
    autoencoder = parts["vae"].config if "vae" in parts else {}
    family_of_class(pipeline, model and model.kind, model.config if model else {}, autoencoder)


@dataclass(frozen=True)
class Part:
    """One model of a pipeline: its library, its class and its configuration."""

    library: str
    name: str
    config: Mapping[str, Any]

    @classmethod
    def of(cls, model: Any) -> Part:
        """That of a model."""
        library = type(model).__module__.split(".")[0]
        config = model.config.to_dict() if library == "transformers" else dict(model.config)
        return cls(library, type(model).__name__, config)

    @property
    def kind(self) -> Any:
        """The class itself. Raises `ValueError` if the library does not have it."""
        return _model_class(self.library, self.name)

    def build(self, dtype: torch.dtype) -> Any:
        """The model, frozen, on the meta device, where it has shapes and no values."""
        with torch.device("meta"):
            if self.library == "diffusers":
                accepted = inspect.signature(self.kind.__init__).parameters  # of the rest it would warn
                model = self.kind.from_config({key: value for key, value in self.config.items() if key in accepted})
            else:
                model = self.kind(self.kind.config_class.from_dict(dict(self.config)))
        nn.Module.to(model, dtype)  # not by diffusers' own `to`, which warns of any cast
        if dtype == torch.float16:  # T5's values would leave its range
            for name, module in model.named_modules():
                if name.rpartition(".")[2] in (getattr(model, "_keep_in_fp32_modules", None) or ()):
                    module.float()
        return model.eval().requires_grad_(False)


def _model_class(library: str, name: str) -> Any:
    kind = getattr(import_module(library), name, None)
    if not isinstance(kind, type) or not issubclass(kind, nn.Module):
        raise ValueError(f"this version of {library} has no model {name}")
    return kind


def parts_in(folder: Path) -> tuple[type, dict[str, Part]]:
    """The class of the pipeline that diffusers saved in a folder, and the models that it takes, by name. Only
    configurations are read. Raises `OSError` or `ValueError`, also for a denoiser, autoencoder or text encoder that has
    no configuration or no class: code that a base brings along is never run."""
    import diffusers

    index, parts = _table(folder / "model_index.json"), {}
    own = index.get("_class_name")
    if isinstance(own, list):
        raise ValueError(f"it contains custom code, {own!r:.80}, which is never run")
    kind = getattr(diffusers, own, None) if isinstance(own, str) else None
    if not isinstance(kind, type) or not kind.__name__.endswith("Pipeline"):
        raise ValueError(f"this version of diffusers has no pipeline {own!r:.80}")
    accepted = inspect.signature(kind.__init__).parameters  # diffusers leaves out the others
    for name, entry in index.items():
        if not {name, "kwargs"} & accepted.keys() or entry in (None, [None, None]):
            continue
        needed, file = name.startswith(sum(BEGIN.values(), ())), folder / name / "config.json"
        match entry:
            case ["diffusers" | "transformers" as library, str(model)]:
                if needed:
                    _model_class(library, model)
                if file.is_file():
                    parts[name] = Part(library, model, _table(file))
                elif needed:
                    raise FileNotFoundError(f"{folder / name} has no config.json")
            case [str(), str()]:  # of another library: diffusers' to open or to refuse
                pass
            case _ if needed:
                raise ValueError(f"{name} must be a model of diffusers or transformers, and is {entry!r:.80}")
    return kind, parts


def hollow(model: nn.Module) -> nn.Module:
    """Put tensors that take no memory, on the CPU, in place of those of a model on the meta device; return it."""
    for module in model.modules():
        for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            zero = torch.zeros((), dtype=tensor.dtype).expand(tensor.shape)
            setattr(module, name, nn.Parameter(zero, False) if isinstance(tensor, nn.Parameter) else zero)
    return model
