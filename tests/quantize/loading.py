"""What torchao and bitsandbytes make of a base: which layers, and how near the numbers stay."""

from typing import Any

import pytest
import torch
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel

from atomtune.bases import TEXT, BaseParts, denoiser, fingerprint, load_base, loading
from atomtune.bases.quantizing import quantization_config, quantized_layers
from atomtune.training import encoding
from tests.bases.test_quantizing import WHOLE, text_encoder
from tests.tiny_pixart import tiny_t5
from tests.training import tiny_others


@pytest.mark.parametrize("kind, error", [("int8", 0.01), ("fp8", 0.04)])
def test_the_linear_layers_of_denoiser_and_text_encoder_are_quantized_but_for_the_first(kind, error, base):
    """The error is that of rounding, relative: 1/127 of the largest of a row for int8, 2^-4 at most for fp8."""
    whole, small = load_base(base), load_base(base, quantize=kind)
    for name in ("transformer", "text_encoder"):
        exact, found = dict(getattr(whole, name).named_modules()), dict(getattr(small, name).named_modules())
        linear = [key for key, module in exact.items() if isinstance(module, torch.nn.Linear)]
        assert len(linear) > 5
        for key in linear:
            weight, expected = found[key].weight, exact[key].weight
            assert type(weight).__module__.startswith("torchao.")
            off = (weight.dequantize() - expected).norm() / expected.norm()
            assert 0 < off < error
    assert all(type(p) is torch.nn.Parameter for p in small.vae.parameters())
    assert fingerprint(denoiser(small)) == fingerprint(denoiser(whole))


def test_a_first_layer_that_is_linear_is_left_as_it_is(tmp_path):
    tiny_others.flux().save_pretrained(tmp_path)
    whole, small = load_base(tmp_path), load_base(tmp_path, quantize="int8")
    first, *others = [key for key, m in denoiser(whole).named_modules() if isinstance(m, torch.nn.Linear)]
    modules = dict(denoiser(small).named_modules())
    assert next(denoiser(small).named_parameters())[0] == f"{first}.weight"
    assert type(modules[first].weight) is torch.nn.Parameter
    assert all(type(modules[key].weight).__module__.startswith("torchao.") for key in others)
    assert fingerprint(denoiser(small)) == fingerprint(denoiser(whole))


@pytest.mark.parametrize("library", ["diffusers", "transformers"])
@pytest.mark.parametrize("kind, name", [("int8", "Int8WeightOnlyConfig"), ("fp8", "Float8WeightOnlyConfig")])
def test_int8_and_fp8_are_of_weights_alone(library, kind, name):
    config = quantization_config(kind, library, torch.bfloat16, "proj_in")
    assert type(config).__module__.startswith(f"{library}.") and type(config.quant_type).__name__ == name
    assert config.modules_to_not_convert == ["proj_in"]


@pytest.mark.parametrize("kind", ["int8", "fp8", "nf4"])
@pytest.mark.parametrize("chosen", WHOLE, ids=lambda chosen: chosen.__name__)
def test_the_layers_that_are_quantized_are_those_of_a_model_that_was_loaded_so(chosen, kind, tmp_path):
    tiny = text_encoder(chosen)
    tiny.save_pretrained(tmp_path)
    config = quantization_config(kind, "transformers", torch.bfloat16)
    loaded = chosen.from_pretrained(tmp_path, dtype=torch.bfloat16, quantization_config=config)
    linear = {name: layer for name, layer in loaded.named_modules() if isinstance(layer, nn.Linear)}
    expected = {name for name, layer in linear.items() if type(layer.weight) is not nn.Parameter}
    found = quantized_layers(tiny, kind)
    assert {name for name, layer in tiny.named_modules() if layer in found} == expected


def wide_encoders(folder: Any) -> None:
    """Stable Diffusion 3 in miniature, with text encoders of whole blocks: nf4 has 64 weights in each."""
    pipe: Any = tiny_others.stable_diffusion_3()
    words, _ = tiny_t5(32)
    t5 = T5Config(vocab_size=len(words), d_model=128, d_kv=64, d_ff=128, num_layers=2, num_heads=2)
    wide: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 64, "projection_dim": 64}
    clip = CLIPTextConfig(**tiny_others.text_config().to_dict() | wide)
    pipe.register_modules(
        text_encoder=CLIPTextModelWithProjection(clip),
        text_encoder_2=CLIPTextModelWithProjection(clip),
        text_encoder_3=T5EncoderModel(t5),
    )
    pipe.save_pretrained(folder)


def test_text_encoders_in_nf4_read_captions_nearly_as_the_whole_ones(tmp_path, monkeypatch):
    """On a CPU, where bitsandbytes computes but diffusers loads no denoiser: so nf4 is refused, but not in this test.

    Random weights are rounded worst: 4 bits are off by a tenth of each weight, and both layers add to it.
    """
    monkeypatch.setattr(loading, "refuse_quantizing", lambda *_: None)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        wide_encoders(tmp_path)
    answers = []
    for quantize in (None, "nf4"):
        parts = BaseParts(str(tmp_path), torch.float32, quantize=quantize)
        parts.load(TEXT)
        answers.append(encoding.encode_caption(parts.pipe, "a sks dog", 64))
    for name in ("text_encoder", "text_encoder_2", "text_encoder_3"):
        linear = [m for m in getattr(parts.pipe, name).modules() if isinstance(m, torch.nn.Linear)]
        small = [m for m in linear if type(m).__module__.startswith("bitsandbytes.")]
        assert len(small) > 5
    for key in ("encoder_hidden_states", "pooled_projections"):
        whole, found = (answer[key] for answer in answers)
        off = float((found - whole).norm() / whole.norm())
        assert 0 < off < 0.3
