"""AtomConfig: out of range or contradictory is one clear sentence; saved and opened it is the same."""

import pytest
from peft import PeftConfig

from atomtune.adapters import AtomConfig
from atomtune.errors import UserError


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"density": 4.0}, "density must be in (0, 1], got 4. Did you mean 0.04 (4 %)?"),
        ({"density": 0.0}, "density must be in (0, 1], got 0."),
        ({"num_atoms": 0}, "num_atoms must be at least 1, got 0."),
        ({"activation": "gelu"}, "activation must be one of topk, batch_topk, soft, relu, jumprelu, got 'gelu'."),
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
