"""What PEFT promises of an adapter, in the shape of its own cross-method tests: one test, every family, both forms.

test_families.py holds the method itself to its promises on the same table.
"""

import copy
import pickle
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from peft import LoraConfig, PeftModel, get_model_status, inject_adapter_in_model
from torch import nn
from torch.testing import assert_close
from transformers.pytorch_utils import Conv1D

from atomtune.adapters import AtomLayer, adapted_layers
from atomtune.errors import UserError
from tests.adapters.families import Family
from tests.adapters.test_families import adapted, every_form
from tests.adapters.tiny import atom_config, wake


def woken(family: Family, targets: Any, seed: int = 0, **options: Any) -> Any:
    return wake(adapted(family, targets, **options), seed=seed)


def with_two(family: Family, targets: Any, dtype: torch.dtype = torch.float32) -> Any:
    """The model with the adapters "default" and "other", of different sizes and densities."""
    model = woken(family, targets, dtype=dtype)
    model.add_adapter("other", atom_config(target_modules=targets, num_atoms=11, density=0.3))
    return wake(model, "other", seed=5)


def scaled(model: Any, **weights: float) -> Any:
    for layer in model.modules():
        if isinstance(layer, AtomLayer):
            for name, weight in weights.items():
                layer.set_scale(name, weight)
    return model


def last_linear(family: Family) -> str:
    """A layer that no adapter targets, for `modules_to_save`; not the output embedding, which may be the input's."""
    layers = [name for name, module in family.model().named_modules() if isinstance(module, (nn.Linear, Conv1D))]
    return [name for name in layers if name != "lm_head"][-1]


@every_form
def test_two_adapters_add_up_and_each_comes_and_goes_alone(family, targets):
    """Both at once is their concatenation, exactly the sum of the two ΔO, in every layer; in float64."""
    model = with_two(family, targets, torch.float64)
    first = family.run(model, torch.float64)
    model.set_adapter("other")
    other = family.run(model, torch.float64)
    model.base_model.set_adapter(["default", "other"])
    both = family.run(model, torch.float64)
    assert not torch.allclose(both, first, atol=1e-3) and not torch.allclose(both, other, atol=1e-3)
    model.base_model.add_weighted_adapter(["default", "other"], [1.0, 1.0], "sum")
    model.set_adapter("sum")
    assert_close(family.run(model, torch.float64), both, atol=1e-9, rtol=0)  # the sums have another order
    model.set_adapter("default")
    model.delete_adapter("sum")
    model.delete_adapter("other")
    assert torch.equal(family.run(model, torch.float64), first)
    assert list(model.peft_config) == ["default"] and not adapted_layers(model, "other")


@every_form
def test_weights_scale_each_adapter(family, targets):
    """α ΔO: as if D had been multiplied by α; at 0 the adapter is away. In float64."""
    model = with_two(family, targets, torch.float64)
    model.base_model.set_adapter(["default", "other"])
    both = family.run(model, torch.float64)
    weighted = family.run(scaled(model, default=0.5, other=0.0), torch.float64)
    alone = woken(family, targets, dtype=torch.float64)
    for layer in adapted_layers(alone):
        layer.dictionary("default").decoder.weight.data.mul_(0.5)
    assert_close(weighted, family.run(alone, torch.float64), atol=1e-9, rtol=0)  # α D is rounded once more
    assert torch.equal(family.run(scaled(model, default=1.0, other=1.0), torch.float64), both)


@every_form
def test_the_models_own_methods_of_diffusers_and_transformers_work(family, targets):
    """`add_adapter`, `set_adapters` with weights (diffusers), `set_adapter`, `disable_adapters`, `delete_adapter`."""
    model = family.model()
    if family.name in ("PixArt-α", "PixArt-Σ", "DiT", "Hunyuan-DiT"):
        pytest.skip("a class of diffusers without adapter methods of its own: get_peft_model is for these")
    base = family.run(model.requires_grad_(False))
    torch.manual_seed(0)
    model.add_adapter(atom_config(target_modules=targets), "default")
    output = family.run(wake(model))
    assert torch.equal(output, family.run(woken(family, targets)))
    if hasattr(model, "set_adapters"):
        model.set_adapters(["default"], [0.0])
        assert torch.equal(family.run(model), base)
        model.set_adapters(["default"], [1.0])
    model.set_adapter("default")
    assert torch.equal(family.run(model), output)
    model.disable_adapters()
    assert torch.equal(family.run(model), base)
    model.enable_adapters()
    assert torch.equal(family.run(model), output)
    (model.delete_adapters if hasattr(model, "delete_adapters") else model.delete_adapter)("default")
    assert torch.equal(family.run(model), base)


@every_form
def test_a_layer_is_chosen_left_out_or_saved_with_the_adapter(family, targets, tmp_path):
    """`layers_to_transform`, `exclude_modules` and `modules_to_save`."""
    names = adapted(family, targets).base_model.targeted_module_names
    rest = adapted(family, targets, exclude_modules=names[:1]).base_model.targeted_module_names
    assert rest == names[1:]
    if isinstance(targets, str):
        with pytest.raises(UserError, match="layers_to_transform needs target_modules to be a list of names"):
            adapted(family, targets, layers_to_transform=[0])
    else:
        number = next(int(part) for part in names[0].split(".") if part.isdigit())
        chosen = adapted(family, targets, layers_to_transform=[number]).base_model.targeted_module_names
        in_block = [n for n in names if next(int(part) for part in n.split(".") if part.isdigit()) == number]
        assert chosen == in_block

    model = woken(family, targets, modules_to_save=[last_linear(family)])
    trained = [p for name, p in model.named_parameters() if ".modules_to_save.default." in name]
    assert trained and all(parameter.requires_grad for parameter in trained)
    for parameter in trained:
        parameter.data += 0.1
    output = family.run(model)
    model.save_pretrained(str(tmp_path), save_embedding_layers=False)
    assert torch.equal(family.run(PeftModel.from_pretrained(family.model(), str(tmp_path))), output)


@every_form
def test_loaded_from_disk_lazily_beside_another_or_injected_it_is_the_same(family, targets, tmp_path):
    """`low_cpu_mem_usage`, `load_adapter` and `inject_adapter_in_model`."""
    model = woken(family, targets)
    output = family.run(model)
    model.save_pretrained(str(tmp_path), save_embedding_layers=False)
    lazily = PeftModel.from_pretrained(family.model(), str(tmp_path), low_cpu_mem_usage=True)
    assert torch.equal(family.run(lazily), output)
    beside = woken(family, targets, seed=7, num_atoms=5)
    beside.load_adapter(str(tmp_path), "second", low_cpu_mem_usage=True)
    beside.set_adapter("second")
    assert torch.equal(family.run(beside), output)
    torch.manual_seed(0)
    injected = inject_adapter_in_model(atom_config(target_modules=targets), family.model())
    assert torch.equal(family.run(wake(injected)), output)


@every_form
def test_the_status_tells_what_is_there(family, targets, capsys):
    model = with_two(family, targets)
    status = get_model_status(model)
    layers = adapted_layers(model)
    assert status.peft_types == {"default": "ATOMS", "other": "ATOMS"}
    assert status.enabled is True and status.active_adapters == ["default"]
    assert set(status.available_adapters) == {"default", "other"}
    assert status.requires_grad == {"default": True, "other": False}
    assert status.num_adapter_layers == len(layers) == len(model.get_layer_status())
    assert status.merged_adapters == [] and status.adapter_model_type == "AtomModel"
    trainable = sum(parameter.numel() for layer in layers for parameter in layer.dictionary("default").parameters())
    assert status.trainable_params == trainable == model.get_nb_trainable_parameters()[0]
    model.print_trainable_parameters()
    assert f"trainable params: {trainable:,} ||" in capsys.readouterr().out


@every_form
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_a_copy_is_whole_and_apart(copied, family, targets):
    model = woken(family, targets)
    output = family.run(model)
    twin = copied(model)
    assert torch.equal(family.run(twin), output)
    wake(twin, seed=9)
    assert not torch.equal(family.run(twin), output)
    assert torch.equal(family.run(twin.unload()), family.run(family.model().requires_grad_(False)))
    assert torch.equal(family.run(model), output)


@every_form
def test_offloaded_to_where_weights_wait_it_is_the_same(family, targets):
    """accelerate keeps the weights elsewhere and brings each to its layer when it runs."""
    if family.name == "Hunyuan-DiT":
        pytest.skip("its pooler reads weights past their layers: the base cannot be offloaded either")
    model = woken(family, targets)
    output = family.run(model)
    cpu_offload(model, torch.device("cpu"), state_dict={k: v.clone() for k, v in model.state_dict().items()})
    assert all(parameter.is_meta for parameter in model.parameters())
    assert torch.equal(family.run(model), output)


@every_form
@pytest.mark.filterwarnings("ignore:Already found a `peft_config`", "ignore:fan_in_fan_out is set to False")
def test_lora_goes_on_the_same_layers_before_or_after(family, targets):
    outputs = []
    for order in (("atoms", "lora"), ("lora", "atoms")):
        model = family.model()
        for name in order:
            torch.manual_seed(3)
            lora = LoraConfig(r=2, target_modules=family.linear, init_lora_weights=False)
            model = inject_adapter_in_model(
                atom_config(target_modules=targets) if name == "atoms" else lora, model, name
            )
        outputs.append(family.run(wake(model, "atoms")))
    assert_close(outputs[0], outputs[1], atol=1e-5, rtol=1e-5)  # float32: W X + ΔO + ΔO' is added up in another order
    assert not torch.allclose(outputs[0], family.run(woken(family, targets)), atol=1e-3)


@every_form
def test_a_bf16_base_carries_fp32_atoms(family, targets):
    model = woken(family, targets, dtype=torch.bfloat16)
    assert {p.dtype for n, p in model.named_parameters() if ".atoms_" in n} == {torch.float32}
    assert {p.dtype for n, p in model.named_parameters() if ".atoms_" not in n} == {torch.bfloat16}
    output = family.run(model, torch.bfloat16)
    assert output.dtype == torch.bfloat16
    assert not torch.allclose(output, family.run(family.model(torch.bfloat16), torch.bfloat16), atol=0.01)


@every_form
def test_merging_into_the_weights_is_refused_with_the_reason(family, targets):
    model = woken(family, targets)
    output = family.run(model)
    for merge in (model.merge_and_unload, model.merge_adapter):
        with pytest.raises(UserError, match=r"σ makes ΔO a nonlinear function of the input: keep the adapter .*unload"):
            merge()
    assert torch.equal(family.run(model), output)
