"""Dials and measurements are float32 whatever is done to the model around them, and at hand where it is offloaded."""

from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from diffusers.hooks import apply_group_offloading
from peft import get_peft_model
from torch.testing import assert_close

import atomtune
from atomtune.adapters import adapted_layers
from atomtune.errors import UserError
from atomtune.method.dials import Dials
from tests.adapters.tiny import atom_config, run, transformer, wake

HALF = [torch.bfloat16, torch.float16]
KINDS: list[dict[str, Any]] = [
    {"activation": "topk"},
    {"activation": "batch_topk"},
    {"activation": "jumprelu", "threshold": 0.3, "threshold_units": "scale"},
]


def dials(model: torch.nn.Module) -> list[torch.Tensor]:
    return [
        buffer for module in model.modules() if isinstance(module, Dials) for buffer in module.buffers(recurse=False)
    ]


@pytest.mark.parametrize("options", KINDS, ids=str)
@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_dials_keep_float32_on_a_base_of_half_precision(dtype, options):
    model: Any = get_peft_model(transformer(dtype), atom_config(**options), autocast_adapter_dtype=False)
    for moved in (model, model.to(dtype), model.half()):
        found = dials(moved)
        assert len(found) > 10
        assert {tensor.dtype for tensor in found} == {torch.float32, torch.int64}
    assert adapted_layers(model)[0].dictionary("default").encoder.weight.dtype == torch.float16


def test_dials_follow_to_more_than_float32():
    model = get_peft_model(transformer(), atom_config(activation="jumprelu")).double()
    assert {tensor.dtype for tensor in dials(model)} == {torch.float64, torch.int64}


@pytest.mark.parametrize("assign", [False, True])
def test_dials_that_were_stored_in_half_precision_are_loaded_as_float32(assign):
    model = get_peft_model(transformer(), atom_config(activation="batch_topk"))
    stored = {name: t.half() if t.is_floating_point() else t for name, t in model.state_dict().items()}
    model.load_state_dict(stored, assign=assign)
    assert {tensor.dtype for tensor in dials(model)} == {torch.float32, torch.int64}


def offload(model: torch.nn.Module, how: str) -> None:
    if how == "group":
        apply_group_offloading(model, onload_device=torch.device("cpu"), offload_type="leaf_level")
    else:
        cpu_offload(model, execution_device=torch.device("cpu"), offload_buffers=how == "with buffers")


@pytest.mark.parametrize("options", KINDS, ids=str)
@pytest.mark.parametrize("target", ["attn1", "to_v"])
@pytest.mark.parametrize("how", ["with buffers", "without buffers", "group"])
@torch.no_grad()
def test_offloaded_the_model_is_the_same_and_its_dials_are_at_hand(how, target, options):
    def adapted() -> Any:
        torch.manual_seed(0)
        model = wake(get_peft_model(transformer(), atom_config(target_modules=[target], **options)))
        for layer in adapted_layers(model):
            layer.dictionary("default").usage.copy_(torch.arange(18))
        return model.eval()

    plain, offloaded = adapted(), adapted()
    for dropped in (None, [2], [3]):  # before offloading, while, and again
        for model in (plain, offloaded):
            atoms = atomtune.board(model)
            if dropped:
                atoms.drop([f"L0[{index}]" for index in dropped])
                atoms["L1[4]"].gain = 0.5
        if dropped is None:
            offload(offloaded, how)
        # To the bit: the same weights meet the same numbers.
        assert torch.equal(run(offloaded), run(plain))
    for one, other in zip(atomtune.board(offloaded).dictionaries, atomtune.board(plain).dictionaries):
        assert_close(one.mean_energy, other.mean_energy)


def test_atoms_are_not_saved_while_their_weights_are_elsewhere(tmp_path):
    model = get_peft_model(transformer(), atom_config())
    cpu_offload(model, execution_device=torch.device("cpu"), offload_buffers=True)
    with pytest.raises(UserError, match="cannot be saved or merged while the model is offloaded"):
        model.save_pretrained(str(tmp_path))
