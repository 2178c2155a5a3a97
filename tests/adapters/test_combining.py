"""Several adapters as one: against the plain formulas in float64, through PEFT's add_weighted_adapter."""

from copy import deepcopy
from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch.testing import assert_close

from atomtune.adapters import adapted_layers
from atomtune.adapters.layer import named_layers
from atomtune.errors import UserError
from atomtune.steering import board
from tests.adapters.tiny import atom_config, run, transformer, wake

OTHERS = {
    "same shape": {},
    "another size": {"num_atoms": 7, "density": 0.4},
    "fewer layers": {"num_atoms": 5, "target_modules": ["transformer_blocks.1.attn1"]},
    "other layers": {"target_modules": ["attn2"]},
    "some shared": {"target_modules": ["transformer_blocks.1.attn1", "attn2.to_v", "net.2"]},
    "sizes by layer": {"num_atoms_pattern": {"transformer_blocks.0.attn1": 3}},
}


def pair(first: dict[str, Any] | None = None, other: dict[str, Any] | None = None) -> Any:
    """Adapters "one" and "two" on one model."""
    model: Any = get_peft_model(transformer(), atom_config(**first or {}), "one")
    model.add_adapter("two", atom_config(**other or {}))
    return wake(wake(model, "one"), "two", seed=1)


def sum_of_both(model: Any, weights=(1.0, 1.0)) -> torch.Tensor:
    for name, weight in zip(("one", "two"), weights):
        for layer in adapted_layers(model, name):
            layer.set_scale(name, weight)
    model.base_model.set_adapter(["one", "two"])
    output = run(model)
    for name in ("one", "two"):
        for layer in adapted_layers(model, name):
            layer.set_scale(name, 1.0)
    return output


def top_k(C: torch.Tensor, k: int) -> torch.Tensor:
    return torch.where(C.abs() >= C.abs().sort(descending=True).values[..., k - 1 : k], C, 0.0)


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize(
    "common",
    [{}, {"mix_first": False}, *({"activation": σ} for σ in ("soft", "relu", "jumprelu", "batch_topk"))],
    ids=lambda c: str(*c.values()),
)
def test_a_concatenation_is_the_weighted_sum(other, common):
    model = pair(common, common | OTHERS[other])
    adapted_layers(model, "one")[0].dictionary("one").gain[3] = 0.3
    adapted_layers(model, "two")[-1].dictionary("two").gain[1] = -2.0
    expected = sum_of_both(model, (1.0, -0.7))
    model.add_weighted_adapter(["one", "two"], [1.0, -0.7], "c", combination_type="cat")
    model.set_adapter("c")
    assert_close(run(model), expected, atol=1e-6, rtol=1e-6)
    assert not torch.allclose(run(model), run(transformer()))
    gains = torch.cat([dictionary.gain for dictionary in board(model, "c").dictionaries])
    assert (gains == 0.3).sum() == 1 and (gains == -2.0).sum() == 1


def test_each_part_of_a_concatenation_keeps_its_own_k():
    """ΔO = w_a top4(x W_a)(g_a ∘ D_a) + w_b top3(x W_b) D_b, in float64."""
    model = pair({"target_modules": ["net.2"]}, {"target_modules": ["net.2"], "num_atoms": 7, "density": 0.4})
    layer = adapted_layers(model, "one")[0]
    layer.dictionary("one").gain.normal_(generator=torch.Generator().manual_seed(0))
    model.add_weighted_adapter(["one", "two"], [0.5, 2.0], "c")
    model.double()
    a, b, c = (layer.dictionary(name) for name in ("one", "two", "c"))
    x = torch.randn(9, layer.in_features, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    delta = sum(
        w * (top_k(x @ part.encoder.weight.T, k) * part.gain) @ part.decoder.weight
        for w, part, k in ((0.5, a, 4), (2.0, b, 3))
    )
    assert_close(c(x), delta, atol=1e-12, rtol=1e-12)
    assert (c.sigma.k.tolist(), c.group.tolist()) == ([4, 3], [0] * 18 + [1] * 7)


def test_linear_sums_encoder_and_dictionary_entry_by_entry():
    model = pair()
    layer = adapted_layers(model, "one")[1]
    a, b = layer.dictionary("one"), layer.dictionary("two")
    b.gain[2] = 0.5
    model.add_weighted_adapter(["one", "two"], [1.0, -0.49], "c", combination_type="linear")
    c = layer.dictionary("c")
    W, D = (lambda part: part.encoder.weight.double()), (lambda part: part.decoder.weight.double())
    # summed in float32, whose last bit is 1.2e-7 at 1
    assert_close(c.encoder.weight.double(), W(a) + 0.7 * W(b), atol=1e-6, rtol=0)
    assert_close(c.decoder.weight.double(), D(a) - 0.7 * D(b) * b.gain[:, None], atol=1e-6, rtol=0)
    assert (c.gain == 1).all() and not c.usage.any()


def test_one_adapter_at_a_weight_and_another_at_zero_is_the_weighted_one():
    model = pair()
    expected = sum_of_both(model, (0.6, 0.0))
    for combination_type in ("cat", "linear"):
        model.add_weighted_adapter(["one", "two"], [0.6, 0.0], combination_type, combination_type=combination_type)
        model.set_adapter(combination_type)
        assert_close(run(model), expected, atol=1e-6, rtol=1e-6)


def test_every_address_of_the_first_stays_and_none_is_there_twice():
    model = pair(other=OTHERS["some shared"])
    a = {atom.address: atom.direction for atom in board(model, "one")}
    model.add_weighted_adapter(["one", "two"], [1, 1], "c")
    merged = board(model, "c")
    c = {atom.address: atom.direction for atom in merged}
    assert len(c) == len(merged) == len(board(model, "one")) + len(board(model, "two"))
    assert all(torch.equal(c[address], direction) for address, direction in a.items())
    # a: L0, L1 (attn1 of both blocks). b: L0 attn2.to_v, L1 ff, L2 attn1, L3 attn2.to_v, L4 ff; ids from 18.
    numbers = {
        name: int(layer.dictionary("c").layer) for name, layer in named_layers(model.base_model.model, "c").items()
    }
    assert numbers == {
        "transformer_blocks.0.attn1": 0,
        "transformer_blocks.1.attn1": 1,
        "transformer_blocks.1.attn2.to_v": 3,
        "transformer_blocks.1.ff.net.2": 4,
        "transformer_blocks.0.attn2.to_v": 5,
        "transformer_blocks.0.ff.net.2": 6,
    }
    b_atom = next(
        atom for atom in board(model, "two") if atom.dictionary is adapted_layers(model, "two")[2].dictionary("two")
    )
    assert torch.equal(c["L1[18]"], b_atom.direction)
    assert int(merged["L1[18]"].dictionary.group[merged["L1[18]"].index]) == 1


def test_a_concatenation_can_be_concatenated_again():
    model = pair(other=OTHERS["another size"])
    model.add_weighted_adapter(["one", "two"], [1, 1], "both")
    model.add_weighted_adapter(["both", "two"], [1, 0.5], "abb")
    expected = sum_of_both(model, (1.0, 1.5))
    model.set_adapter("abb")
    assert_close(run(model), expected, atol=1e-6, rtol=1e-6)
    dictionary = board(model, "abb").dictionaries[0]
    assert (dictionary.sigma.k.tolist(), dictionary.id.tolist()) == ([4, 3, 3], list(range(18 + 7 + 7)))


def test_what_was_turned_is_what_is_merged():
    """Scale, dropped atoms and density, as they are now."""
    model = pair()
    board(model, "one").keep(9, by=[torch.arange(18.0), torch.zeros(18)])
    board(model, "two").density = 0.1
    for layer in adapted_layers(model, "one"):
        layer.set_scale("one", 0.5)
    model.base_model.set_adapter(["one", "two"])
    expected = run(model)
    model.add_weighted_adapter(["one", "two"], [1, 1], "c")
    model.set_adapter("c")
    assert_close(run(model), expected, atol=1e-6, rtol=1e-6)
    assert len(board(model, "c")) == 9 + 36
    assert "L0[17]" in board(model, "c").kept and "L1[3]" not in {atom.address for atom in board(model, "c")}


def test_the_merged_adapter_is_one_like_any_other():
    """Frozen, not active by itself, trainable again, copied, and the others are as they were."""
    model = pair(other=OTHERS["some shared"])
    model.set_adapter("one")
    before = run(model)
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    model.add_weighted_adapter(["one", "two"], [1, 1], "c")
    assert torch.equal(run(model), before)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == trainable
    model.set_adapter("c")
    after = run(deepcopy(model))
    assert torch.equal(run(model), after)
    run(model).sum().backward()
    assert all(p.grad is not None for name, p in model.named_parameters() if ".c." in name)
    model.set_adapter("one")
    model.delete_adapter("c")
    assert torch.equal(run(model), before)


CAT, LINEAR = "cat", "linear"
WRONG = {
    "activation": (
        CAT,
        {"activation": "relu"},
        r"their activation differs \('topk' and 'relu'\): load both and activate them together with "
        r"model.base_model.set_adapter\(\[\"subject\", \"style\"\]\)",
    ),
    "order": (CAT, {"mix_first": False}, "their mix_first differs"),
    "size": (
        LINEAR,
        {"num_atoms": 7},
        r"encoder.weight of shape \[18, 32\] in one and \[7, 32\] in the other: use cat",
    ),
    "layers": (LINEAR, OTHERS["fewer layers"], "transformer_blocks.0.attn1 has atoms in only one of them: use cat"),
    "svd": ("svd", {}, "combination_type must be cat or linear, got 'svd'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_is_a_sentence_and_changes_nothing(case):
    combination_type, other, sentence = WRONG[case]
    model = pair(other=other)
    with pytest.raises(UserError, match=sentence):
        model.add_weighted_adapter(["one", "two"], [1, 1], "c", combination_type=combination_type)
    assert list(model.peft_config) == ["one", "two"] and not adapted_layers(model, "c")


def test_thresholds_matter_only_where_there_is_one():
    pair(other={"threshold": 0.5}).add_weighted_adapter(["one", "two"], [1, 1], "c")
    model = pair({"activation": "soft"}, {"activation": "soft", "threshold": 0.5})
    with pytest.raises(UserError, match=r"their threshold differs \(0.1 and 0.5\)"):
        model.add_weighted_adapter(["one", "two"], [1, 1], "c")


def test_heads_of_pruned_adapters_must_agree_to_be_added():
    model = pair()
    adapted_layers(model, "two")[0].dictionary("two").head.copy_(torch.arange(18) % 4)
    with pytest.raises(UserError, match=r"the atoms of transformer_blocks.0.attn1 belong to other heads"):
        model.add_weighted_adapter(["one", "two"], [1, 1], "c", combination_type="linear")


@pytest.mark.parametrize(
    "adapters, weights, name, sentence",
    [
        (["one", "x"], [1, 1], "c", "there is no adapter 'x': expected some of one, two"),
        (["one", "two"], [1], "c", "one weight for each adapter, got 1 for 2"),
        (["one", "two"], [1, 1], "one", "there already is an adapter 'one'"),
        (["one"], [1], "c", "at least two adapters, got 1"),
    ],
)
def test_bad_arguments_are_sentences(adapters, weights, name, sentence):
    with pytest.raises(UserError, match=sentence):
        pair().add_weighted_adapter(adapters, weights, name)


def test_beside_lora_the_names_stay_those_of_the_adapted_layers():
    from peft import LoraConfig, inject_adapter_in_model

    model = pair({"target_modules": ["to_v"]}, {"target_modules": ["to_v"]})
    with pytest.warns(UserWarning, match="Already found"):
        inject_adapter_in_model(LoraConfig(r=2, target_modules=["to_v"]), model.base_model.model, "lora")
    model.add_weighted_adapter(["one", "two"], [1, 1], "c")
    assert len(board(model, "c")) == 2 * 36 * 2
