"""Load a base: the whole pipeline, or its parts one after the other.

    base = BaseParts("black-forest-labs/FLUX.1-dev", torch.bfloat16)
    base.pipe                    the pipeline; its models are hollow (`parts.hollow`)
    base.load(TEXT)              the text encoders are real
    base.drop(TEXT)              and gone
    base.load(DENOISER)
    base.free(DENOISER)          hollow again

A hollow model can do everything but run.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from atomtune.bases.opening import MOJI, denoiser_name, fingerprint
from atomtune.bases.parts import (
    BEGIN,
    DENOISER,
    EXPECTED,
    IMAGES,
    TEXT,
    Part,
    check_complete,
    configurations,
    hollow,
    is_hub_name,
    parts_in,
    refuse_missing,
    refuse_other_family,
    refusing_unreadable,
)
from atomtune.bases.quantizing import quantization_config, refuse_quantizing
from atomtune.devices import pick_device, pick_dtype
from atomtune.errors import UserError

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

ENDS = 64  # numbers at each end of a tensor that go into `digest`


def load_base(
    name_or_path: str | Path,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    quantize: str | None = None,
) -> DiffusionPipeline:
    """Open a base: `"moji"`, a folder saved by diffusers, or a hub name.

    As in diffusers the base stays on the CPU unless a `device` is given. "auto" is the accelerator if there is one, and
    the default of every command of atomtune. Without a `dtype` (or with "auto") the device decides: float32 on a CPU,
    bfloat16 on an accelerator, float16 on one that has no bfloat16.

    `quantize` ("int8", "fp8" or "nf4") stores the weights of the linear layers of the denoiser and the text encoders in
    so few bits, by torchao or bitsandbytes, which the extra `quantize` installs.

    Weights are read from safetensors alone, and no code that a base brings along is run.

    Raises `UserError` if there is no such base, device or precision, or the device cannot do with so few bits.
    """
    name = os.path.expanduser(str(name_or_path))
    place = torch.device("cpu") if device is None else pick_device(device)
    precision = pick_dtype(dtype, place)
    if quantize is not None:
        base = BaseParts(name, precision, place, quantize)
        for part in (TEXT, IMAGES, DENOISER):
            base.load(part)
        pipe = base.pipe
    elif name == MOJI:
        pipe = _moji(precision)
    else:
        from diffusers import DiffusionPipeline

        refuse_missing(name)
        with refusing_unreadable(name):
            if not is_hub_name(name):
                check_complete(Path(name))
            # Weights as pickle are refused: reading one may run any code.
            pipe = DiffusionPipeline.from_pretrained(name, dtype=precision, use_safetensors=True)
    if place.type != "cpu":
        pipe.to(place)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _moji(precision: torch.dtype) -> DiffusionPipeline:
    from atomtune import moji

    pipe = moji.load()
    for part in pipe.components.values():
        if isinstance(part, nn.Module):  # not by diffusers' own `to`, which warns of any cast
            nn.Module.to(part, precision)
    pipe.register_to_config(_name_or_path=MOJI)
    return pipe


class BaseParts:
    """A base whose parts are loaded and freed one after the other. Raises `UserError` as `load_base` does.

    moji is so small that it is whole from the start.
    """

    def __init__(
        self, name: str, dtype: torch.dtype, device: torch.device | None = None, quantize: str | None = None
    ) -> None:
        self.name, self.dtype, self.quantize = name, dtype, quantize
        if quantize is not None:
            refuse_quantizing(quantize, name, device or torch.device("cpu"))
        self._absent: set[str] = set()
        if name == MOJI:
            from atomtune.moji.pipeline import WEIGHTS_FOLDER

            self.folder, self.pipe = WEIGHTS_FOLDER, _moji(dtype)
            models = {name: part for name, part in self.pipe.components.items() if isinstance(part, nn.Module)}
            self.parts = {name: Part.of(model) for name, model in models.items()}
        else:
            refuse_missing(name)
            self.folder, self.pipe = self._opened()
        self.pipe.set_progress_bar_config(disable=True)
        self.denoiser = denoiser_name(self.pipe)

    def _opened(self) -> tuple[Path, DiffusionPipeline]:
        from diffusers import DiffusionPipeline

        options: dict[str, Any] = {"dtype": self.dtype, "use_safetensors": True}
        with refusing_unreadable(self.name):
            refuse_other_family(*parts_in(configurations(self.name)))  # before tens of GB are downloaded
            local = not is_hub_name(self.name)
            folder = Path(self.name if local else DiffusionPipeline.download(self.name, use_safetensors=True))
            check_complete(folder)
            begin = sum(BEGIN.values(), ())  # of the others, which are few and small, no pipeline could do without
            self.parts = {name: part for name, part in parts_in(folder)[1].items() if name.startswith(begin)}
            self._absent |= self.parts.keys()
            models = {name: hollow(part.build(self.dtype)) for name, part in self.parts.items()}
            pipe = DiffusionPipeline.from_pretrained(folder, **options, **models)
        pipe.register_to_config(_name_or_path=self.name)
        return folder, pipe

    def load(self, kind: str, dtype: torch.dtype | None = None) -> None:
        """Make the parts of a kind real, in `dtype` or the precision of the base, unless they are already."""
        for name in self._names(kind):
            if name in self._absent:
                setattr(self.pipe, name, self._loaded(name, dtype or self.dtype))
                self._absent.remove(name)

    def free(self, kind: str) -> None:
        """Make the parts of a kind hollow again."""
        for name in self._names(kind):
            setattr(self.pipe, name, hollow(self.parts[name].build(self.dtype)))
            self._absent.add(name)
        self._collect()

    def drop(self, kind: str) -> None:
        """Leave the pipeline without the parts of a kind."""
        for name in self._names(kind):
            setattr(self.pipe, name, None)
            self._absent.add(name)
        self._collect()

    def _collect(self) -> None:
        """Give the memory of what was freed back at once. The hooks of offloading leave each model with a reference to
        itself, so that it would wait for Python's garbage collector, on the accelerator too."""
        from accelerate.utils.memory import clear_device_cache

        if self.name != MOJI:
            clear_device_cache(garbage_collection=True)

    def _names(self, kind: str) -> list[str]:
        return [name for name in self.parts if name.startswith(BEGIN[kind])]

    def _loaded(self, name: str, dtype: torch.dtype) -> nn.Module:
        if self.name == MOJI:
            return getattr(_moji(dtype), name)
        part, options = self.parts[name], {}
        if self.quantize is not None and name != IMAGES:
            layer = self._first().rpartition(".")[0] if name == self.denoiser else ""  # "" for one outside of layers
            options["quantization_config"] = quantization_config(self.quantize, part.library, dtype, layer or None)
        with refusing_unreadable(self.name):
            return part.kind.from_pretrained(self.folder / name, dtype=dtype, use_safetensors=True, **options)

    # -- what its weights are, without loading them ---------------------------------------------------------------

    def fingerprint(self) -> list[float]:
        """The `fingerprint` of the denoiser, read from its file."""
        first = self._first()
        with refusing_unreadable(self.name):
            for file, names in self._files(self.denoiser):
                if first in names:
                    return fingerprint(file.get_tensor(first))
        raise UserError(f"the base model {self.name!r} could not be opened (it has no {first}): {EXPECTED}.")

    def digest(self) -> str:
        """A digest of all that decides what the base draws: both ends of every tensor of its models, read from their
        files, their configurations and the sampler's, and the files of the tokenizers."""
        scheduler = getattr(self.pipe, "scheduler", None)
        given = {name: part.config for name, part in self.parts.items()}
        given |= {f"{type(self.pipe).__name__} {type(scheduler).__name__}": getattr(scheduler, "config", {})}
        # without what diffusers notes of its own, such as paths, and names in an order that changes
        configs = {name: {k: v for k, v in dict(config).items() if k[0] != "_"} for name, config in given.items()}
        found = hashlib.sha256(json.dumps(configs, sort_keys=True, default=str).encode())
        with refusing_unreadable(self.name):
            for part in sorted(self.parts):
                for file, names in self._files(part):
                    for name in names:
                        found.update(_ends(file, name).float().numpy().tobytes())
            for file in sorted(filter(Path.is_file, self.folder.glob("tokenizer*/*"))):
                found.update(file.name.encode() + file.read_bytes())
        return found.hexdigest()

    def _first(self) -> str:
        """The name of the denoiser's first parameter. Its layer is not quantized, because the base is recognized by
        its numbers."""
        return next(self.parts[self.denoiser].build(self.dtype).named_parameters())[0]

    def _files(self, part: str) -> Iterator[tuple[Any, list[str]]]:
        """The files of the weights of a model, open, and the names of the tensors in each."""
        from diffusers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFETENSORS_WEIGHTS_NAME
        from safetensors import safe_open

        folder = self.folder / part
        index, only = folder / SAFE_WEIGHTS_INDEX_NAME, folder / SAFETENSORS_WEIGHTS_NAME
        files = [only] if only.is_file() else sorted(folder.glob("*.safetensors"))
        if index.is_file():
            files = [folder / name for name in sorted({*json.loads(index.read_text())["weight_map"].values()})]
        for path in files:
            with safe_open(path, "pt") as file:
                yield file, sorted(file.keys())


def _ends(file: Any, name: str) -> torch.Tensor:
    """The first and the last numbers of a tensor in an open safetensors file, of which no more is read."""
    part = file.get_slice(name)
    shape = part.get_shape()
    if not shape:
        return file.get_tensor(name).flatten()
    rows = min(shape[0], math.ceil(ENDS / max(1, math.prod(shape[1:]))))
    first, last = part[:rows].flatten()[:ENDS], part[shape[0] - rows :].flatten()[-ENDS:]
    return torch.cat([first, last])
