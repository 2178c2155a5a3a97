"""Atoms that say what a LoRA says."""

from typing import Any

import pytest
import torch
from diffusers.utils.state_dict_utils import convert_state_dict_to_diffusers
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file
from torch.testing import assert_close

from atomtune.adapters import AtomConfig
from atomtune.errors import UserError
from atomtune.lora.distillation import Reservoir, distill, distill_model, fit, load_lora
from atomtune.method.dictionary import SparseDictionary
from atomtune.method.sigma import SigmaConfig
from atomtune.steering import board
from atomtune.storage.folders import load_adapter, save_adapter
from atomtune.tracing import trace
from tests.adapters.tiny import inputs, wake
from tests.lora.test_conversion import TOKENS, gpt2_with_lora
from tests.tiny_pixart import tiny_pixart

QUICK: Any = {"sampling_steps": 2, "num": 1, "tokens": 200, "steps": 30}


def pipe_with_lora(**options):
    pipe = tiny_pixart()
    pipe.set_progress_bar_config(disable=True)
    targets = ["attn1.to_q", "attn1.to_v", "attn1.to_out.0"]
    config = LoraConfig(**{"r": 3, "lora_alpha": 6, "target_modules": targets} | options)
    pipe.transformer = get_peft_model(pipe.transformer, config).eval()
    generator = torch.Generator().manual_seed(0)
    for name, parameter in pipe.transformer.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(std=0.2, generator=generator)
    return pipe


@torch.no_grad()
def answer(pipe) -> torch.Tensor:
    return pipe.transformer(**inputs(), return_dict=False)[0]


def test_without_sigma_the_lora_is_reached_exactly():
    pipe = pipe_with_lora()
    expected = answer(pipe)
    layers = distill(pipe, pipe.transformer, ["a dog"], density=1.0, **QUICK)
    assert_close(answer(pipe), expected, atol=1e-6, rtol=0)
    assert [layer.share for layer in layers] == pytest.approx([1.0] * 6, abs=1e-9)


def test_every_layer_is_fitted_and_measured():
    pipe = pipe_with_lora()
    expected = answer(pipe)
    layers = distill(pipe, pipe.transformer, ["a dog"], num_atoms=16, density=0.25, **(QUICK | {"steps": 200}))
    assert len(layers) == len(board(pipe).dictionaries) == 6 and len({layer.name for layer in layers}) == 6
    assert all(0.5 < layer.share < 1 and layer.weight > 0 for layer in layers)
    assert (answer(pipe) - expected).norm() < 0.5 * expected.norm()
    with trace(pipe.transformer) as seen:
        answer(pipe)
    assert seen.active_per_token == 4
    assert (
        sum(map(float, [energy.sum() for energy in board(pipe).mean_energy()])) > 0
    )  # so that keep and prune can rank


def test_a_text_model_is_distilled_on_texts_that_are_run():
    """The share explained in each layer, in float64, is that of the formula."""
    targets = ["c_attn", "mlp.c_proj"]
    lora = gpt2_with_lora(targets)
    texts = torch.randint(50, (40, 16), generator=torch.Generator().manual_seed(1))
    seen: list[torch.Tensor] = []
    layer: Any = lora.get_base_model().transformer.h[0].mlp.c_proj  # before it nothing differs but the LoRA below
    layer.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    product = 5 / 3 * (layer.lora_B["default"].weight @ layer.lora_A["default"].weight).detach().T
    with torch.no_grad():
        expected = lora(input_ids=TOKENS).logits
        with lora.disable_adapter():
            base = lora(input_ids=TOKENS).logits
    model, layers = distill_model(lora, lambda: lora(input_ids=texts), num_atoms=24, density=0.25, steps=300)
    assert len(layers) == 4 and all(0.5 < each.share < 1 for each in layers)
    x = seen[-1].flatten(0, 1)
    (share,) = [each.share for each in layers if each.name.endswith("h.0.mlp.c_proj")]
    dictionary = board(model)["L1"].dictionary
    C = x @ dictionary.encoder.weight.T
    S = torch.where(C.abs() >= C.abs().sort(dim=1, descending=True).values[:, 5:6], C, 0)
    missed = (S @ dictionary.decoder.weight - x @ product).detach()
    assert x.dtype == torch.float64
    assert float(missed.square().sum() / (x @ product).square().sum()) == pytest.approx(1 - share, abs=0.1)
    with torch.no_grad():
        assert (model(input_ids=TOKENS).logits - expected).norm() < 0.7 * (base - expected).norm()


def test_a_layer_that_saw_too_few_tokens_is_named():
    lora = gpt2_with_lora(["c_attn"])
    with pytest.raises(UserError, match=r"h.0.attn.c_attn saw 0 tokens, too few to distill on: run the model on more"):
        distill_model(lora, lambda: None)


def test_fit_lowers_the_error_that_is_its_objective():
    """‖σ(X W_s) D − X P‖² / ‖X P‖², written out with the k largest coefficients of every token."""
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(600, 12, generator=generator, dtype=torch.float64)
    P = torch.randn(12, 3, generator=generator, dtype=torch.float64) @ torch.randn(3, 10, generator=generator).double()
    dictionary = SparseDictionary(12, 24, 10, SigmaConfig(density=4 / 24)).double()

    def error() -> float:
        C = X @ dictionary.encoder.weight.T
        S = torch.where(C.abs() >= C.abs().sort(dim=1, descending=True).values[:, 3:4], C, 0)
        missed = S @ dictionary.decoder.weight - X @ P
        return float(missed.square().sum().detach() / (X @ P).square().sum())

    errors = []
    for steps in (1, 400):
        fit(dictionary, X, X @ P, P, steps, torch.Generator().manual_seed(1))
        errors.append(error())
    assert errors[1] < errors[0] / 2 and errors[0] < 0.1  # where atoms start is good already
    assert all(parameter.grad is None for parameter in dictionary.parameters())


@given(st.integers(1, 30), st.lists(st.integers(1, 20), min_size=1, max_size=6))
def test_a_reservoir_keeps_tokens_of_every_call(size, calls):
    reservoir, total = Reservoir(size, torch.Generator().manual_seed(0)), 0
    for count in calls:
        reservoir.add(torch.arange(total, total + count).float().reshape(1, count, 1))
        total += count
    kept = reservoir.tokens.flatten().tolist()
    assert len(kept) == len(set(kept)) == min(size, total) and set(kept) <= set(range(total))


def test_every_token_is_as_likely_to_be_kept():
    counts = torch.zeros(40)
    generator = torch.Generator().manual_seed(0)
    for _ in range(400):
        reservoir = Reservoir(10, generator)
        for first in range(0, 40, 8):
            reservoir.add(torch.arange(first, first + 8).float()[:, None])
        counts[reservoir.tokens.flatten().long()] += 1
    assert (counts - 100).abs().max() < 5 * (400 * 0.25 * 0.75) ** 0.5


@pytest.mark.parametrize("form", ["peft", "folder", "file", "down and up"])
def test_loras_are_opened_in_every_form(tmp_path, form):
    pipe = pipe_with_lora(lora_alpha=3)
    expected, model = answer(pipe), pipe.transformer
    state = {key.removeprefix("base_model.model."): value for key, value in get_peft_model_state_dict(model).items()}
    file = tmp_path / "pytorch_lora_weights.safetensors"
    if form == "peft":
        model.save_pretrained(str(tmp_path))
    elif form == "down and up":
        old = convert_state_dict_to_diffusers(state)
        assert any("lora.down" in key for key in old)
        save_file({f"transformer.{key}": value.contiguous() for key, value in old.items()}, file)
    else:
        save_file({f"transformer.{key}": value for key, value in state.items()}, file)
    fresh = tiny_pixart()
    load_lora(fresh, file if form == "file" else tmp_path)
    assert_close(answer(fresh), expected)


def test_what_is_no_lora_is_refused_in_a_sentence(tmp_path):
    with pytest.raises(UserError, match="could not be read"):
        load_lora(tiny_pixart(), tmp_path / "none.safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="holds no LoRA"):
        load_lora(tiny_pixart(), tmp_path / "other.safetensors")
    pipe = pipe_with_lora()
    with pytest.raises(UserError, match="nothing to distill on"):
        distill(pipe, pipe.transformer, [])


@pytest.mark.parametrize("form", ["folder", "file"])
@pytest.mark.parametrize("first", ["atoms", "lora"])
def test_a_lora_and_atoms_are_loaded_onto_one_denoiser_in_either_order(tmp_path, first, form):
    pipe = pipe_with_lora(lora_alpha=3)
    alone = {"lora": answer(pipe)}
    if form == "folder":
        pipe.transformer.save_pretrained(str(tmp_path / "lora"))
    else:
        (tmp_path / "lora").mkdir()
        state = get_peft_model_state_dict(pipe.transformer)
        state = {key.replace("base_model.model.", "transformer."): value for key, value in state.items()}
        save_file(state, tmp_path / "lora" / "pytorch_lora_weights.safetensors")
    own = tiny_pixart()
    config = AtomConfig(target_modules=["attn1", "attn2.to_v"], num_atoms=8)
    own.transformer = wake(get_peft_model(own.transformer, config))
    alone["atoms"] = answer(own)
    save_adapter(own, tmp_path / "atoms", base="tiny")

    fresh = tiny_pixart()
    order = ["atoms", "lora"] if first == "atoms" else ["lora", "atoms"]
    for name in order:
        load = load_adapter if name == "atoms" else load_lora
        load(fresh, tmp_path / name, f"the {name}")
    model: Any = fresh.transformer
    assert_close(answer(fresh), alone[first])  # the second one waits until it is switched on
    model.base_model.set_adapter(["the atoms", "the lora"])
    both = answer(fresh)
    for name in order:
        model.base_model.set_adapter([f"the {name}"])
        assert_close(answer(fresh), alone[name])
        assert not torch.allclose(answer(fresh), both)
    with pytest.raises(UserError, match="already has an adapter 'the atoms', of the method ATOMS"):
        load_lora(fresh, tmp_path / "lora", "the atoms")
    assert len(board(fresh, "the atoms").layers) == len(board(own).layers)
