"""What PEFT promises of an adapter on a PixArt-Σ transformer of the real class; test_peft_suite.py has every family."""

import copy
import warnings
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor2_0
from peft import LoraConfig, OFTConfig, PeftModel, get_peft_model, get_peft_model_state_dict, inject_adapter_in_model
from safetensors.torch import load_file
from torch.testing import assert_close

from atomtune.adapters import AtomConfig, AttentionAtoms, LinearAtoms, adapted_layers
from atomtune.errors import UserError
from tests.adapters.tiny import atom_config, run, transformer, wake

TARGETS = [["attn1"], ["attn1", "attn2"], ["to_v"], ["attn1", "attn2.to_v", "net.2"]]


def adapted(**options) -> Any:
    return wake(get_peft_model(transformer(), atom_config(**options)))


@pytest.mark.parametrize("targets", TARGETS)
def test_with_zero_atoms_the_model_is_the_base_model(targets):
    model = get_peft_model(transformer(), atom_config(target_modules=targets))
    assert_close(run(model), run(transformer()), atol=1e-6, rtol=0)


def test_an_attention_module_gets_attention_atoms_and_a_linear_layer_linear_atoms():
    layers = adapted_layers(adapted(target_modules=["attn1", "attn2.to_v"]))
    assert [type(layer) for layer in layers] == [AttentionAtoms, LinearAtoms] * 2


@pytest.mark.parametrize("targets", TARGETS)
def test_saved_and_loaded_is_the_same_model(tmp_path, targets):
    model = adapted(target_modules=targets, activation="soft", threshold=0.05, mix_first=False)
    adapted_layers(model)[0].dictionary("default").gain[3] = 0.5
    model.save_pretrained(str(tmp_path))
    again = PeftModel.from_pretrained(transformer(), str(tmp_path))
    assert torch.equal(run(again), run(model))
    config = again.peft_config["default"]
    assert isinstance(config, AtomConfig)
    assert (config.activation, config.mix_first) == ("soft", False)


def test_saved_tensors_are_named_after_the_layer_they_adapt(tmp_path):
    adapted(target_modules=["attn1", "attn2.to_v"]).save_pretrained(str(tmp_path))
    parts = ("encoder.weight", "decoder.weight", "gain", "id", "layer", "head", "group", "usage", "sigma.k")
    parts += ("floor.levels", "floor.share")
    assert set(load_file(tmp_path / "adapter_model.safetensors")) == {
        f"base_model.model.transformer_blocks.{block}.{layer}.atoms_{part}"
        for block in range(2)
        for layer in ("attn1", "attn2.to_v")
        for part in parts
    }


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_two_adapters_live_side_by_side(tmp_path, low_cpu_mem_usage):
    other = wake(get_peft_model(transformer(), atom_config(num_atoms=7, target_modules=["attn2"])), seed=5)
    other.save_pretrained(str(tmp_path))
    model = adapted()
    first = run(model)
    model.load_adapter(str(tmp_path), "other", low_cpu_mem_usage=low_cpu_mem_usage)
    assert torch.equal(run(model), first)
    model.set_adapter("other")
    assert torch.equal(run(model), run(other))
    model.base_model.set_adapter(["default", "other"])
    assert not torch.allclose(run(model), run(other))
    model.set_adapter("default")
    model.delete_adapter("other")
    assert torch.equal(run(model), first)
    assert adapted_layers(model, "other") == []


def test_disabled_the_model_is_the_base_model_bit_for_bit():
    model = adapted()
    with model.disable_adapter():
        assert torch.equal(run(model), run(transformer()))
    assert not torch.allclose(run(model), run(transformer()))


@pytest.mark.parametrize("targets", TARGETS)
def test_unloaded_the_base_comes_back_bit_for_bit(targets):
    base = adapted(target_modules=targets).unload()
    assert torch.equal(run(base), run(transformer()))
    assert [name for name, _ in base.named_modules()] == [name for name, _ in transformer().named_modules()]
    assert type(base.transformer_blocks[0].attn1.processor) is AttnProcessor2_0
    base.fuse_qkv_projections()
    assert_close(run(base), run(transformer()), atol=1e-5, rtol=0)


LORA = LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False)


@pytest.mark.parametrize("targets", TARGETS)
def test_atoms_and_lora_attach_in_either_order(targets):
    """Same function, same tensors under the same names on disk, both trainable; and both come off."""
    models, states = [], []
    for order in (("atoms", "lora"), ("lora", "atoms")):
        model = transformer()
        for name in order:
            torch.manual_seed(3)
            config = atom_config(target_modules=targets) if name == "atoms" else copy.deepcopy(LORA)
            with pytest.warns(UserWarning, match="Already found") if name == order[1] else torch.no_grad():
                model = inject_adapter_in_model(config, model, name)
        wake(model, "atoms")
        models.append(model)
        states.append({name: get_peft_model_state_dict(model, adapter_name=name) for name in order})
    assert_close(run(models[0]), run(models[1]), atol=1e-6, rtol=0)
    assert not torch.allclose(run(models[0]), run(transformer()))
    atoms = [state["atoms"] for state in states]
    assert atoms[0].keys() == atoms[1].keys()
    assert all("atoms_" in key for key in atoms[0])
    assert any("lora_A" in key for key in states[0]["lora"])
    assert not any("atoms_dictionaries" in key for state in states for key in state["lora"])
    for model in models:
        run(model).sum().backward()
        trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
        assert any(".lora_A." in name for name in trained)
        assert any(".atoms_dictionaries." in name for name in trained)
        assert all(".lora_" in name or ".atoms_dictionaries." in name for name in trained)


@pytest.mark.parametrize("targets", [["attn1"], ["to_v"]])
@pytest.mark.parametrize("first", ["atoms", "lora"])
def test_the_wrapper_of_the_atoms_switches_saves_loads_deletes_and_unloads_a_lora_too(tmp_path, first, targets):
    def injected(base):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Already found", UserWarning)
            inject_adapter_in_model(copy.deepcopy(LORA), base, "style")

    def wrapped(base):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "(Already found|You are trying to modify)", UserWarning)
            return get_peft_model(base, atom_config(target_modules=targets), "subject")

    base: Any = transformer()
    if first == "lora":
        injected(base)
        model = wrapped(base)
    else:
        model = wrapped(base)
        injected(base)
    wake(model, "subject")
    atoms: Any = model.base_model
    plain = run(transformer())
    outputs: dict[str, Any] = {}
    for names in (["subject"], ["style"], ["subject", "style"]):
        atoms.set_adapter(names)
        outputs[" ".join(names)] = run(model)
        trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        assert any(".lora_" in name for name in trained) == ("style" in names)
        assert any(".atoms_" in name for name in trained) == ("subject" in names)
    assert len({round(float((y - plain).norm().detach()), 4) for y in outputs.values()} - {0.0}) == 3
    with model.disable_adapter():
        assert torch.equal(run(model), plain)

    model.save_pretrained(str(tmp_path))
    again: Any = PeftModel.from_pretrained(transformer(), str(tmp_path / "subject"), "subject")
    assert torch.equal(run(again), outputs["subject"])
    with pytest.warns(UserWarning, match="Already found"):
        PeftModel.from_pretrained(again.get_base_model(), str(tmp_path / "style"), "style")
    for names, output in outputs.items():
        again.base_model.set_adapter(names.split())
        assert torch.equal(run(again), output)

    again.delete_adapter("style")
    assert torch.equal(run(again), outputs["subject"])
    assert not [name for name, _ in again.named_parameters() if ".lora_" in name]
    assert torch.equal(run(model.unload()), plain)


def test_a_name_that_a_lora_has_is_refused_before_peft_forgets_the_lora():
    base: Any = get_peft_model(transformer(), copy.deepcopy(LORA)).get_base_model()
    with pytest.raises(UserError, match="already has an adapter 'default', of the method LORA: give this one another"):
        inject_adapter_in_model(atom_config(), base)
    assert base.peft_config["default"].peft_type == "LORA"


def test_only_atoms_train_and_peft_counts_them():
    model = adapted()
    assert model.get_nb_trainable_parameters()[0] == 2 * 2 * 18 * 32
    run(model).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == (".atoms_dictionaries." in name), name


@pytest.mark.parametrize("targets", [["attn1"], ["to_v"]])
def test_gradient_checkpointing_gives_the_same_gradients(targets):
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = adapted(target_modules=targets).train()
        if checkpointing:
            model.base_model.model.enable_gradient_checkpointing()
        run(model).square().sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() != set()
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name]), name


def test_a_bf16_base_carries_fp32_atoms(tmp_path):
    model = wake(get_peft_model(transformer(torch.bfloat16), atom_config()))
    assert {p.dtype for n, p in model.named_parameters() if "atoms_dictionaries" in n} == {torch.float32}
    adapted_layers(model)[0].dictionary("default").gain[0] = 0.7  # not a bf16 number
    output = run(model, torch.bfloat16)
    assert output.dtype == torch.bfloat16
    model.save_pretrained(str(tmp_path))
    again = PeftModel.from_pretrained(transformer(torch.bfloat16), str(tmp_path))
    assert adapted_layers(again)[0].dictionary("default").gain[0] == torch.tensor(0.7)
    assert torch.equal(run(again, torch.bfloat16), output)
    plain = get_peft_model(transformer(torch.bfloat16), atom_config(), autocast_adapter_dtype=False)
    assert {p.dtype for p in plain.parameters()} == {torch.bfloat16}
    assert run(wake(plain), torch.bfloat16).dtype == torch.bfloat16


def test_layers_to_transform_exclude_modules_and_modules_to_save(tmp_path):
    one = get_peft_model(transformer(), atom_config(layers_to_transform=[1]))
    assert one.base_model.targeted_module_names == ["transformer_blocks.1.attn1"]
    rest = get_peft_model(transformer(), atom_config(exclude_modules=["transformer_blocks.1.attn1"]))
    assert rest.base_model.targeted_module_names == ["transformer_blocks.0.attn1"]
    saved = wake(get_peft_model(transformer(), atom_config(modules_to_save=["proj_out"])))
    saved.base_model.model.proj_out.modules_to_save["default"].weight.data += 1
    saved.save_pretrained(str(tmp_path))
    assert torch.equal(run(PeftModel.from_pretrained(transformer(), str(tmp_path))), run(saved))


@pytest.mark.parametrize("replace", ["fuse_qkv_projections", "set_default_attn_processor"])
def test_what_would_silently_lose_the_atoms_is_refused(replace):
    model = adapted()
    before = run(model)
    with pytest.raises(UserError, match="the atoms would be silently lost: unload the adapter first"):
        getattr(model.base_model.model, replace)()
    assert torch.equal(run(model), before)


def test_fusing_is_refused_for_linear_atoms_too():
    model = adapted(target_modules=["to_v"])
    with pytest.raises(UserError, match="cannot be fused while atoms are attached"):
        model.base_model.model.fuse_qkv_projections()


@pytest.mark.parametrize("targets", [["attn1"], ["attn1.to_v"]])
def test_fused_projections_are_refused_before_anything_is_changed(targets):
    base = transformer()
    base.fuse_qkv_projections()
    with pytest.raises(UserError, match=r"transformer_blocks.0.attn1.* cannot carry atoms: .*[Ff]used"):
        get_peft_model(base, atom_config(target_modules=targets))
    base.unfuse_qkv_projections()
    get_peft_model(base, atom_config(target_modules=targets))


def test_unsuitable_targets_are_refused_before_anything_is_changed():
    base = transformer()
    with pytest.raises(UserError, match=r"pos_embed.proj cannot carry atoms: it is a Conv2d, and atoms need"):
        get_peft_model(base, atom_config(target_modules=["attn1", "pos_embed.proj"]))
    assert adapted_layers(base) == []


def test_an_adapter_of_another_shape_of_model_is_refused_by_name(tmp_path):
    adapted(target_modules=["attn1", "attn2"]).save_pretrained(str(tmp_path))
    with pytest.raises(UserError, match=r"has .*attn2.*, which this model has no place for"):
        PeftModel.from_pretrained(transformer(), str(tmp_path), config=atom_config())
    with pytest.raises(UserError, match=r"the saved adapter lacks .*to_v"):
        PeftModel.from_pretrained(
            transformer(), str(tmp_path), config=atom_config(target_modules=["attn1", "attn2", "to_v"])
        )


def test_parameter_counts_on_pixart_sigma():
    """EVIDENCE.md's counts on the real configuration, without its memory."""
    sizes: dict[str, Any] = {
        "num_attention_heads": 16,
        "attention_head_dim": 72,
        "num_layers": 28,
        "cross_attention_dim": 1152,
    }
    sizes |= {"caption_channels": 4096, "sample_size": 128, "interpolation_scale": 2}

    def trainable(peft_config) -> int:
        with torch.device("meta"):
            model = get_peft_model(transformer(**sizes), peft_config)
        return model.get_nb_trainable_parameters()[0]

    with torch.device("meta"):
        base = transformer(**sizes)
    assert sum(p.numel() for p in base.parameters()) + base.pos_embed.pos_embed.numel() == 615_574_688
    targets = [f"attn1.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0")]
    assert trainable(LoraConfig(r=16, target_modules=targets)) == 4_128_768
    assert trainable(LoraConfig(r=16, use_dora=True, target_modules=targets)) == 4_257_792
    assert trainable(OFTConfig(r=4, oft_block_size=0, target_modules=targets)) == 18_514_944
    assert 28 * 4 * 4 * 288 * 288 == 37_158_912  # the full blocks that PEFT stored up to 0.15
    assert trainable(AtomConfig(target_modules=["attn1"], num_atoms=256)) == 16_515_072
