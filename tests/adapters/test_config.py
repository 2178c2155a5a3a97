"""AtomConfig: out of range or contradictory is one clear sentence; saved and opened it is the same."""

import re
from dataclasses import fields
from typing import Any

import pytest
import torch
from peft import PeftConfig, PeftModel, get_peft_model

from atomtune.adapters import AtomConfig, adapted_layers
from atomtune.errors import UserError
from atomtune.steering import board
from atomtune.tracing import trace
from tests.adapters.tiny import run, transformer, wake


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"density": 4.0}, "density must be in (0, 1], got 4. Did you mean 0.04 (4 %)?"),
        ({"density": 0.0}, "density must be in (0, 1], got 0."),
        ({"num_atoms": 0}, "num_atoms must be at least 1, got 0."),
        ({"activation": "gelu"}, "activation must be one of topk, batch_topk, soft, relu, jumprelu, got 'gelu'."),
        ({"k": 0}, "k must be a whole number from 1 to num_atoms = 256, got 0."),
        ({"k": 9, "num_atoms": 8}, "k must be a whole number from 1 to num_atoms = 8, got 9."),
        (
            {"k": 4, "activation": "soft"},
            "k belongs to topk and batch_topk, and activation is soft: give threshold.",
        ),
        (
            {"k": 4, "density": 0.04},
            "density and k both set how many atoms a token may use, got 0.04 and 4: give one.",
        ),
        ({"threshold": -1.0}, "threshold must be 0 or more, got -1."),
        (
            {"target_modules": ".*attn1", "layers_to_transform": [0]},
            "layers_to_transform needs target_modules to be a list of names; "
            "with a regular expression, write the block numbers into it.",
        ),
        (
            {"layers_pattern": "blocks"},
            "layers_pattern has no effect without layers_to_transform: give layers_to_transform too.",
        ),
    ],
)
def test_bad_values_are_one_sentence(options, sentence):
    with pytest.raises(UserError) as error:
        AtomConfig(**{"target_modules": ["attn1"]} | options)
    assert str(error.value) == sentence


def test_defaults_are_the_documented_ones():
    config = AtomConfig(target_modules=["attn1"])
    assert (config.num_atoms, config.activation, config.density, config.mix_first) == (256, "topk", 0.04, True)


def test_k_is_exact_in_every_layer_and_survives_saving_pruning_and_merging(tmp_path):
    options = {"target_modules": ["attn1"], "num_atoms": 18, "num_atoms_pattern": {"1.attn1": 7}}
    for k in range(1, 19):
        model: Any = get_peft_model(transformer(), AtomConfig(k=k, **options))
        with trace(wake(model)) as t:
            run(model)
        assert [int(layer.fired.sum()) / layer.tokens for layer in t.layers] == [k, min(k, 7)]
    model = wake(get_peft_model(transformer(), AtomConfig(k=5, **options)))
    model.save_pretrained(str(tmp_path / "whole"))
    again: Any = PeftModel.from_pretrained(transformer(), str(tmp_path / "whole"))
    assert torch.equal(run(again), run(model))
    assert (again.peft_config["default"].k, again.peft_config["default"].density) == (5, 5 / 18)
    again.add_adapter("other", AtomConfig(k=2, **options))
    again.base_model.add_weighted_adapter(["default", "other"], [1.0, 1.0], "both")
    assert adapted_layers(again, "both")[0].dictionary("both").sigma.k_now == [5, 2]
    atoms = board(model)
    atoms.only(["L0", "L1[2:4]"])
    model.prune()
    model.save_pretrained(str(tmp_path / "pruned"))
    assert torch.equal(run(PeftModel.from_pretrained(transformer(), str(tmp_path / "pruned"))), run(model))


def test_every_option_is_explained_in_its_help_and_in_the_docstring():
    own = [each for each in fields(AtomConfig) if each.name in AtomConfig.__annotations__]
    described = re.findall(r"^ {8}(\w+): ", AtomConfig.__doc__ or "", re.MULTILINE)
    assert described == [each.name for each in own]
    for each in own:
        assert each.metadata["help"].endswith("."), each.name


def test_saved_and_opened_by_peft_it_is_the_same(tmp_path):
    config = AtomConfig(
        target_modules=["attn1", "attn2"],
        layers_to_transform=[0, 3],
        base_model_name_or_path="moji",
    )
    config.save_pretrained(str(tmp_path))
    again = PeftConfig.from_pretrained(str(tmp_path))
    assert again == config
    first = (tmp_path / "adapter_config.json").read_bytes()
    again.save_pretrained(str(tmp_path))
    assert (tmp_path / "adapter_config.json").read_bytes() == first
