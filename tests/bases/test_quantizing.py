"""Bases with fewer bits, without the packages for it: what is refused, and what is asked of bitsandbytes.

What needs the packages is in tests/quantize.
"""

import importlib.metadata

import pytest
import torch

import atomtune
from atomtune.bases.quantizing import quantization_config, refuse_quantizing

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize("library", ["diffusers", "transformers"])
def test_nf4_is_that_of_qlora(library, monkeypatch):
    """Built without bitsandbytes, of which only the version is asked: that is made up here."""
    version = importlib.metadata.version
    made_up = lambda name: "0.49.0" if name == "bitsandbytes" else version(name)  # noqa: E731
    monkeypatch.setattr(importlib.metadata, "version", made_up)
    config = quantization_config("nf4", library, torch.bfloat16, "proj_in")
    assert type(config).__module__.startswith(f"{library}.")
    assert config.load_in_4bit and config.bnb_4bit_quant_type == "nf4"
    assert config.bnb_4bit_compute_dtype == torch.bfloat16 and config.llm_int8_skip_modules == ["proj_in"]


@pytest.mark.parametrize(
    "kind, base, device, sentence",
    [
        ("int3", "a/base", CPU, "quantize must be one of int8, fp8, nf4, got 'int3'"),
        ("int8", "moji", CPU, "moji is so small that it is not quantized"),
        ("nf4", "a/base", CPU, "nf4 needs a CUDA or XPU card, and the device is cpu: quantize to int8 instead"),
        ("nf4", "a/base", torch.device("mps"), "nf4 needs a CUDA or XPU card, and the device is mps"),
        ("fp8", "a/base", torch.device("mps"), "fp8 is not there on mps: quantize to int8 instead"),
    ],
)
def test_what_cannot_be_is_refused(kind, base, device, sentence):
    with pytest.raises(atomtune.UserError, match=sentence):
        refuse_quantizing(kind, base, device)


@pytest.mark.parametrize("kind, package", [("int8", "torchao"), ("fp8", "torchao"), ("nf4", "bitsandbytes")])
def test_a_package_that_is_not_there_is_named(kind, package, monkeypatch):
    monkeypatch.setattr("atomtune.bases.quantizing.find_spec", lambda name: None)
    with pytest.raises(atomtune.UserError, match=rf"{kind} needs the package {package}: pip install 'atomtune\[quan"):
        refuse_quantizing(kind, "a/base", CUDA)
