"""Bases with fewer bits, without the packages for it: which layers, what is refused, and what is asked of bitsandbytes.

What needs the packages is in tests/quantize.
"""

import importlib.metadata
from types import SimpleNamespace

import pytest
import torch
import transformers
from diffusers.quantizers.bitsandbytes import BnB4BitDiffusersQuantizer
from diffusers.quantizers.bitsandbytes import utils as of_diffusers
from torch import nn
from transformers.integrations import bitsandbytes as of_transformers
from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer

import atomtune
from atomtune.bases.parts import Part
from atomtune.bases.quantizing import PACKAGES, quantization_config, quantized_layers, refuse_quantizing
from tests.bases.families import BASES
from tests.tiny_pixart import tiny_t5
from tests.training.tiny_others import text_config

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def version_of_bitsandbytes(monkeypatch):
    """Configurations are built without bitsandbytes, of which only the version is asked: that is made up here."""
    version = importlib.metadata.version
    made_up = lambda name: "0.49.0" if name == "bitsandbytes" else version(name)  # noqa: E731
    monkeypatch.setattr(importlib.metadata, "version", made_up)


class Linear4bit(nn.Linear):
    """In place of that of bitsandbytes."""

    def __init__(self, inputs, outputs, bias, *_, **__):
        super().__init__(inputs, outputs, bias)


BITSANDBYTES = SimpleNamespace(nn=SimpleNamespace(Linear4bit=Linear4bit, Linear8bitLt=Linear4bit))
QUANTIZERS = {
    "diffusers": (BnB4BitDiffusersQuantizer, of_diffusers),
    "transformers": (Bnb4BitHfQuantizer, of_transformers),
}


@pytest.mark.parametrize("base", BASES, ids=lambda base: base.name)
def test_the_layers_of_nf4_are_those_that_the_libraries_replace(base, monkeypatch, version_of_bitsandbytes):
    """By their own quantizers, up to the layer of bitsandbytes, for which there is a stand-in."""
    models = [part for part in base.pipe().components.values() if isinstance(part, nn.Module)]
    for part in [Part.of(model) for model in models if not type(model).__name__.startswith("Autoencoder")]:
        quantizer, replacing = QUANTIZERS[part.library]
        monkeypatch.setattr(replacing, "bnb", BITSANDBYTES, raising=False)
        config = quantization_config("nf4", part.library, torch.bfloat16)
        model, replaced = part.build(torch.bfloat16), part.build(torch.bfloat16)
        found = quantized_layers(model, "nf4")
        quantizer(config, pre_quantized=False)._process_model_before_weight_loading(replaced, None)
        expected = {name for name, layer in replaced.named_modules() if isinstance(layer, Linear4bit)}
        assert {name for name, layer in model.named_modules() if layer in found} == expected and expected


WHOLE = {
    transformers.T5EncoderModel: ("encoder.block.0.layer.1.DenseReluDense.wo", {"nf4"}),
    transformers.CLIPTextModelWithProjection: ("text_projection", {"nf4", "int8", "fp8"}),
}


@pytest.mark.parametrize("kind", PACKAGES)
@pytest.mark.parametrize("chosen", WHOLE, ids=lambda chosen: chosen.__name__)
def test_all_linear_layers_of_a_text_encoder_are_quantized_but_one(chosen, kind):
    tiny = text_encoder(chosen)
    name, kinds = WHOLE[chosen]
    linear = {name for name, layer in tiny.named_modules() if isinstance(layer, nn.Linear)}
    found = quantized_layers(tiny, kind)
    expected = linear - ({name} if kind in kinds else set())
    assert name in linear and {name for name, layer in tiny.named_modules() if layer in found} == expected


def text_encoder(chosen):
    return chosen(text_config()) if chosen is transformers.CLIPTextModelWithProjection else tiny_t5(16)[1]


@pytest.mark.parametrize("library", ["diffusers", "transformers"])
def test_nf4_is_that_of_qlora(library, version_of_bitsandbytes):
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
