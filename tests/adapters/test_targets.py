"""What models outside the table are told, and what would silently do nothing."""

import pytest
import torch
from diffusers import UNet2DModel
from diffusers.models.attention_processor import Attention
from peft import LoraConfig, get_peft_model, inject_adapter_in_model
from torch import nn

from atomtune.adapters import AtomConfig, LinearAtoms, adapted_layers
from atomtune.adapters.targets import TARGETS, why_not
from atomtune.errors import UserError
from tests.adapters.families import FAMILIES
from tests.adapters.tiny import atom_config, transformer

NAMED = {family.name: family for family in FAMILIES}
NO_PRESET = r"Please specify `target_modules`: \w+ is not of a family that has a preset, so "


class Block(nn.Module):
    def __init__(self, **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)


@pytest.mark.parametrize(
    ("model", "advice"),
    [
        (Block(a=Block(attn=Attention(8))), 'set it to "attn" for attention atoms, or to "attn.to_v" for linear atoms'),
        (Block(v_proj=nn.Linear(2, 2)), 'set it to "v_proj" for linear atoms'),
        (Block(a=Block(out_proj=nn.Linear(2, 2))), 'set it to "a.out_proj" for linear atoms'),
        (nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), 'set it to some of its 2 linear layers, such as "0" and "1"'),
        (nn.Conv2d(1, 1, 1), "it has no attention module or linear layer that could carry atoms"),
    ],
    ids=["attention", "values", "outputs", "linear", "nothing"],
)
def test_an_unknown_model_is_told_what_it_could_carry_atoms_on(model, advice):
    for attempt in (lambda: AtomConfig.for_model(model), lambda: get_peft_model(model, AtomConfig())):
        with pytest.raises(UserError, match=NO_PRESET + advice):
            attempt()
    assert adapted_layers(model) == []


def test_the_advice_names_what_peft_finds():
    unet = UNet2DModel(
        block_out_channels=(8, 8), norm_num_groups=4, layers_per_block=1, attention_head_dim=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    with pytest.raises(UserError, match=NO_PRESET) as error:
        AtomConfig.for_model(unet)
    targets = [part for part in str(error.value).split('"') if part.endswith("to_v")]
    get_peft_model(unet, atom_config(target_modules=targets))
    assert adapted_layers(unet)


def test_overrides_of_a_preset_are_any_other_dials():
    config = AtomConfig.for_model(transformer(), num_atoms=32, layers_to_transform=[0])
    assert (config.target_modules, config.num_atoms, config.layers_to_transform) == (["attn1"], 32, [0])
    assert AtomConfig.for_model(nn.Linear(2, 2), target_modules=["to_v"]).target_modules == ["to_v"]


def test_a_preset_is_a_copy():
    AtomConfig.for_model(transformer()).target_modules.append("attn2")  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]
    assert TARGETS["PixArtTransformer2DModel"] == ["attn1"]


def test_a_subclass_has_the_preset_of_its_class():
    class Mine(type(transformer())):
        pass

    assert AtomConfig.for_model(Mine.from_config(transformer().config)).target_modules == ["attn1"]


def test_layers_to_transform_is_not_ignored_where_the_preset_is_an_expression():
    model = NAMED["Flux.2"].model()
    for attempt in (
        lambda: AtomConfig.for_model(model, layers_to_transform=[0]),
        lambda: get_peft_model(model, AtomConfig(layers_to_transform=[0])),
    ):
        with pytest.raises(UserError, match="layers_to_transform needs target_modules to be a list of names"):
            attempt()
    assert adapted_layers(model) == []


def test_multihead_attention_of_torch_is_refused_because_it_never_calls_its_projections():
    model = Block(attn=nn.MultiheadAttention(8, 2))
    with pytest.raises(UserError, match=r"attn.out_proj cannot carry atoms: nn.MultiheadAttention reads"):
        get_peft_model(model, atom_config(target_modules=["out_proj"]))


def test_attention_that_already_carries_lora_is_described_by_what_is_under_it():
    model = NAMED["Flux"].model()
    model = inject_adapter_in_model(LoraConfig(r=2, target_modules=["to_v"]), model)
    assert '"attn.to_v"' in (why_not(model, "transformer_blocks.0.attn") or "")
    assert why_not(model, "transformer_blocks.0.attn.to_v") is None


def test_all_linear_finds_conv1d():
    model = get_peft_model(NAMED["GPT-2"].model(), atom_config(target_modules="all-linear"))
    layers = adapted_layers(model)
    assert len(layers) == 2 * 4  # c_attn, two c_proj, c_fc in each of two blocks
    assert {(type(layer), layer.in_features, layer.out_features) for layer in layers} == {
        (LinearAtoms, i, o) for i, o in [(24, 72), (24, 24), (24, 96), (96, 24)]
    }
    model(input_ids=torch.tensor([[3, 4]]))
