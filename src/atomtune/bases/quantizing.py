"""The frozen weights of a base in fewer bits, by torchao and bitsandbytes through the configurations of diffusers and
transformers.

    int8   torchao, one byte for a weight and a scale for each row          CPU and accelerators
    fp8    torchao, float8 (e4m3) and a scale for each row                  CPU and accelerators, but not Apple's
    nf4    bitsandbytes, half a byte for a weight (arXiv 2305.14314)        CUDA and XPU

A layer computes with its weights in full width: less memory, and no more speed.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from atomtune.bases.opening import MOJI
from atomtune.errors import UserError

PACKAGES = {"int8": "torchao", "fp8": "torchao", "nf4": "bitsandbytes"}
"""What quantizes, by the kind of numbers."""


def refuse_kind(kind: str, base: str) -> None:
    """Raise `UserError` if a base is quantized so nowhere: there is no such kind, or the base is moji."""
    if kind not in PACKAGES:
        raise UserError(f"quantize must be one of {', '.join(PACKAGES)}, got {kind!r}.")
    if base == MOJI:
        raise UserError("moji is so small that it is not quantized: leave quantize out, or choose another base.")


def refuse_quantizing(kind: str, base: str, device: torch.device) -> None:
    """Raise `UserError` if a base cannot be quantized so here: see `refuse_kind`; or the package is not installed, or
    the device cannot compute with it."""
    refuse_kind(kind, base)
    if kind == "nf4" and device.type not in ("cuda", "xpu"):
        raise UserError(f"nf4 needs a CUDA or XPU card, and the device is {device}: quantize to int8 instead.")
    if kind == "fp8" and device.type == "mps":
        raise UserError("fp8 is not there on mps: quantize to int8 instead.")
    if find_spec(PACKAGES[kind]) is None:
        raise UserError(f"{kind} needs the package {PACKAGES[kind]}: pip install 'atomtune[quantize]'.")


def quantization_config(kind: str, library: str, dtype: torch.dtype, keep: str | None = None) -> Any:
    """The configuration of "diffusers" or "transformers" that quantizes all linear layers of a model but that of the
    name `keep`. They compute in `dtype`."""
    configs: Any = import_module(library)
    kept = None if keep is None else [keep]
    if kind == "nf4":
        return configs.BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=dtype,
            llm_int8_skip_modules=kept,
        )
    numbers: Any = import_module("torchao.quantization")
    chosen = numbers.Int8WeightOnlyConfig() if kind == "int8" else numbers.Float8WeightOnlyConfig()
    return configs.TorchAoConfig(chosen, modules_to_not_convert=kept)


def quantized_layers(model: Any, kind: str) -> list[nn.Linear]:
    """The linear layers of a model of diffusers or transformers, on any device, that are stored in fewer bits.

    diffusers quantizes all. transformers leaves whole what gives words, and the last layer (CLIP's projection); for nf4
    also what the model keeps in float32, which is a third of T5's weights. Its own functions are asked.
    """
    linear = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    if not hasattr(model, "get_output_embeddings"):
        return list(linear.values())
    base: Any = import_module("transformers.quantizers.base")
    rule: Any = import_module("transformers.quantizers.quantizers_utils")
    whole = base.HfQuantizer.get_modules_to_not_convert(model, None, model._keep_in_fp32_modules)
    # bitsandbytes asks with the name of a layer, which T5's "wo" is the end of, torchao with that of its weight.
    end = "" if kind == "nf4" else ".weight"
    return [layer for name, layer in linear.items() if rule.should_convert_module(name + end, whole)]
