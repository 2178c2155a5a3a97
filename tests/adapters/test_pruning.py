"""Pruning: the pruned adapter says what the full one says under `board.keep`, in memory and on disk."""

from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor2_0
from peft import LoraConfig, PeftModel, get_peft_model, inject_adapter_in_model
from safetensors.torch import load_file
from torch import nn
from torch.testing import assert_close

from atomtune.adapters import LinearAtoms, adapted_layers
from atomtune.errors import UserError
from atomtune.method.dictionary import SparseDictionary
from atomtune.method.sigma import SigmaConfig
from atomtune.steering import board
from tests.adapters.tiny import atom_config, run, transformer, wake

CASES: dict[str, dict[str, Any]] = {
    "attention": {},
    "attention and linear": {"target_modules": ["attn1", "attn2.to_v", "net.2"]},
    "sigma before mixing": {"mix_first": False},
    "soft": {"activation": "soft", "threshold": 0.3},
    "one block": {"layers_to_transform": [1]},
}


def adapted(base: Any = None, **options: Any) -> Any:
    """With some usage, so that there is an energy to rank by."""
    model = wake(get_peft_model(base or transformer(), atom_config(**options)))
    generator = torch.Generator().manual_seed(7)
    for layer in adapted_layers(model):
        layer.dictionary("default").usage.uniform_(generator=generator)
    return model


def saved_and_loaded(model: Any, folder: Any) -> Any:
    model.save_pretrained(str(folder))
    return PeftModel.from_pretrained(transformer(), str(folder))


@pytest.mark.parametrize("count", [1, 3, 7, 17])
@pytest.mark.parametrize("case", CASES)
def test_a_pruned_adapter_says_what_the_full_one_says_under_keep(tmp_path, case, count):
    model = adapted(**CASES[case])
    board(model).keep(count)
    before, kept = run(model), board(model).kept
    result = model.prune()
    assert (result.atoms, len(board(model))) == (count, count)
    assert board(model).kept == kept  # addresses are for life
    assert_close(run(model), before, atol=1e-6, rtol=0)
    again = saved_and_loaded(model, tmp_path)
    assert torch.equal(run(again), run(model))
    assert board(again).kept == kept
    assert board(again).density == board(model).density
    weights = [tensor for name, tensor in load_file(tmp_path / "adapter_model.safetensors").items() if "weight" in name]
    assert sum(weight.numel() for weight in weights) == result.numbers


@pytest.mark.parametrize("heads", [1, 3, 4])
def test_in_float64_the_codes_of_what_is_kept_do_not_change(heads):
    """σ over the kept columns of x W_s alone, for any layout of heads and several groups with a k of their own."""
    generator = torch.Generator().manual_seed(heads)
    whole = SparseDictionary(6, 12, 7, heads=heads, sigma=SigmaConfig(density=(0.25, 0.5))).double()
    whole.reset_parameters(generator)
    nn.init.normal_(whole.decoder.weight, generator=generator)
    whole.head.copy_(torch.randint(heads, (12,), generator=generator))
    whole.group.copy_(torch.tensor([0] * 5 + [1] * 7))
    whole.update_layout()
    whole.sigma.k.copy_(torch.tensor([2, 3]))
    whole.update_layout()
    x = torch.randn(4, 5, 6, generator=generator, dtype=torch.float64)
    for rows in ([0, 3, 4, 6, 7, 8, 11], [0, 1, 2], [9], list(range(12))):
        part = SparseDictionary(6, 12, 7, heads=heads, sigma=SigmaConfig(density=(0.25, 0.5))).double()
        part.load_state_dict(whole.state_dict())
        mask = torch.zeros(12, dtype=torch.bool)
        mask[rows] = True
        part.keep_only(mask)
        W_s, D = whole.encoder.weight[rows].T, whole.decoder.weight[rows]
        group, codes = whole.group[rows], x @ W_s
        for number, k in enumerate((2, 3)):
            own = codes[..., group == number]
            places = own.abs().argsort(dim=-1, descending=True).argsort(dim=-1)
            codes[..., group == number] = own * (places < k)
        expected = codes @ D
        assert_close(part(x), expected, atol=1e-12, rtol=0)
        part.prune()
        assert part.id.tolist() == rows
        assert_close(part.seating.join(part.seating.split(x @ W_s)), x @ W_s)
        assert_close(part(x), expected, atol=1e-12, rtol=0)


def test_a_dictionary_that_was_ever_denser_can_be_pruned_below_its_largest_k():
    dictionary = SparseDictionary(6, 20, 7, SigmaConfig(density=0.1))
    dictionary.sigma.set_density(1.0)
    dictionary.sigma.reset_density()
    dictionary.keep_only(torch.arange(20) < 5)
    dictionary.prune()
    assert (dictionary(torch.randn(3, 6)).shape, dictionary.sigma.density) == ((3, 7), 2 / 5)


def test_layers_left_with_no_atom_are_the_base_models_again(tmp_path):
    model = adapted(target_modules=["attn1", "attn2.to_v"])
    board(model).only(["L3[2]", "L3[5]"])
    result = model.prune()
    assert (result.layers, result.atoms, result.atoms_before) == (1, 2, 72)
    assert (result.numbers, result.numbers_in_the_paper) == (2 * 64, 72 * 32 + 2 * 32)
    blocks = model.get_base_model().transformer_blocks
    assert isinstance(blocks[0].attn1.processor, AttnProcessor2_0)
    assert type(blocks[0].attn2.to_v) is nn.Linear and isinstance(blocks[1].attn2.to_v, LinearAtoms)
    blocks[0].attn2.fuse_projections()  # refused as long as there are atoms
    config = saved_and_loaded(model, tmp_path).peft_config["default"]
    assert config.num_atoms_pattern == {"transformer_blocks.1.attn2.to_v": 2}
    assert list(config.target_modules) == ["transformer_blocks.1.attn2.to_v"]


@pytest.mark.filterwarnings("ignore:You are trying to modify a model with PEFT for a second time")
@pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute in the model")
def test_another_adapter_on_the_same_layers_is_left_alone(tmp_path):
    base = transformer()
    inject_adapter_in_model(LoraConfig(target_modules=["to_v"], r=2), base, "low rank")
    model = adapted(base, target_modules=["to_v"])
    model.add_adapter("other", atom_config(num_atoms=5, target_modules=["to_v"]))
    wake(model, "other", seed=3)
    board(model).keep(3)
    before = run(model)
    model.set_adapter("other")
    others = run(model)
    model.set_adapter("default")
    model.prune()
    assert_close(run(model), before, atol=1e-6, rtol=0)
    assert len(board(model, "other")) == 4 * 5
    model.set_adapter("other")
    assert torch.equal(run(model), others)
    model.save_pretrained(str(tmp_path), selected_adapters=["default"])
    assert_close(run(PeftModel.from_pretrained(transformer(), str(tmp_path))), before, atol=1e-6, rtol=0)


def test_a_pruned_adapter_trains_and_is_pruned_again():
    model = adapted()
    for count in (9, 4):
        board(model).keep(count)
        model.prune()
        run(model).square().mean().backward()
        assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)
    assert len(board(model)) == 4


def test_nothing_left_is_a_sentence():
    model = adapted()
    board(model).drop(["L0", "L1"])
    with pytest.raises(UserError, match=r"every atom was dropped, .* keep at least one"):
        model.prune()
