"""What is promised of an adapter, kept on every family of families.py: one test, every family, every configuration."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import Attention
from peft import PeftModel, get_peft_model
from torch.testing import assert_close

from atomtune.adapters import AtomConfig, AttentionAtoms, LinearAtoms, adapted_layers
from atomtune.errors import UserError
from tests.adapters import plain
from tests.adapters.families import FAMILIES, Family
from tests.adapters.tiny import atom_config, wake

ROOT = Path(__file__).parents[2]
FORMS = [
    pytest.param(family, targets, id=f"{family.name}-{form}")
    for family in FAMILIES
    for form, targets in (("attention", family.attention), ("linear", family.linear))
    if form == "linear" or family.carries_attention_atoms
]
every_form = pytest.mark.parametrize("family, targets", FORMS)
every_family = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
every_configuration = pytest.mark.parametrize(
    "options",
    [
        {"activation": "topk"},
        {"activation": "soft", "threshold": 0.1},
        {"activation": "relu", "threshold": 0.1, "mix_first": False},
    ],
    ids=lambda options: options["activation"],
)


def adapted(family: Family, targets: Any, dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    return attach(family.model(dtype), targets, **options)


def attach(model: Any, targets: Any, **options: Any) -> Any:
    torch.manual_seed(0)  # for the encoders
    return get_peft_model(model, atom_config(target_modules=targets, **options))


@every_form
@every_configuration
def test_with_zero_atoms_the_model_is_the_base_model_bit_for_bit(family, targets, options):
    base = family.model().requires_grad_(False)  # autograd alone makes the CPU take other kernels
    assert torch.equal(family.run(adapted(family, targets, **options)), family.run(base))


@every_form
@every_configuration
def test_every_layer_follows_the_plain_formula(family, targets, options):
    """In float64, on whatever the real model passes to its layers: other streams, masks, flattened batches."""
    model = wake(adapted(family, targets, torch.float64, **options))
    seen = set()

    def check(module: Any, args: tuple, kwargs: dict, output: torch.Tensor) -> None:
        if isinstance(module, LinearAtoms):
            seen.add(module)
            expected = plain.linear(module, args[0])
        else:
            seen.add(module.processor)
            expected = plain.attention(module, args[0], kwargs["encoder_hidden_states"], kwargs["attention_mask"])
        assert output.dtype == torch.float64
        assert_close(output, expected, atol=1e-10, rtol=0)

    for module in model.modules():
        if isinstance(module, LinearAtoms) or (isinstance(module, Attention) and module.processor in model.modules()):
            module.register_forward_hook(check, with_kwargs=True)
    with torch.no_grad():
        family.run(model, torch.float64)
    assert seen == set(adapted_layers(model))


@every_form
@every_configuration
def test_gradients_reach_every_encoder_and_atom_and_nothing_else(family, targets, options):
    model = wake(adapted(family, targets, **options))
    family.run(model).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (".atoms_dictionaries." in name), name
        assert (parameter.grad is not None and bool(parameter.grad.any())) == parameter.requires_grad, name


@every_form
@every_configuration
def test_saved_and_loaded_is_the_same_model_and_unloaded_is_the_base(family, targets, options, tmp_path):
    model = wake(adapted(family, targets, **options))
    output = family.run(model)
    model.save_pretrained(str(tmp_path))
    assert torch.equal(family.run(PeftModel.from_pretrained(family.model(), str(tmp_path))), output)
    base = family.run(family.model().requires_grad_(False))
    with model.disable_adapter():
        assert torch.equal(family.run(model), base)
    assert not torch.allclose(output, base, atol=0.01)
    assert torch.equal(family.run(model.unload()), base)


@pytest.mark.parametrize("family", [f for f in FAMILIES if not f.carries_attention_atoms], ids=lambda f: f.name)
def test_where_attention_atoms_do_not_fit_one_sentence_names_what_does(family):
    model = family.model()
    with pytest.raises(UserError) as error:
        attach(model, family.attention)
    reason, _, advice = str(error.value).partition("; ")
    assert "cannot carry atoms: it" in reason
    targets = advice.removeprefix("target ").removesuffix(" for linear atoms instead.").replace('"', "").split(" and ")
    attach(model, targets)
    assert {type(layer) for layer in adapted_layers(model)} == {LinearAtoms}


@every_family
def test_without_targets_the_preset_of_the_family_is_taken(family):
    model: Any = get_peft_model(family.model(), AtomConfig(num_atoms=18, density=0.2))
    assert model.peft_config["default"].target_modules == AtomConfig.for_model(family.model()).target_modules
    layers = adapted_layers(model)
    assert {type(layer) for layer in layers} == {AttentionAtoms if family.carries_attention_atoms else LinearAtoms}
    blocks = {name.rpartition(".attn")[0] for name, module in model.named_modules() if hasattr(module, "to_q")}
    assert len(layers) >= len(blocks)  # none is forgotten
    before = family.run(model)
    assert not torch.allclose(family.run(wake(model)), before, atol=0.01)


@pytest.mark.parametrize("family", [f for f in FAMILIES if f.generates], ids=lambda f: f.name)
def test_generation_does_not_depend_on_the_cache(family):
    model = wake(adapted(family, family.linear))
    prompt = torch.tensor([[1, 5, 9, 4], [1, 7, 8, 6]])
    tokens = {
        cache: model.generate(
            input_ids=prompt, attention_mask=torch.ones_like(prompt), min_new_tokens=8, max_new_tokens=8, **options
        )
        for cache, options in {
            "none": {"use_cache": False},
            "dynamic": {"cache_implementation": "dynamic"},
            "static": {"cache_implementation": "static"},
        }.items()
    }
    assert torch.equal(tokens["dynamic"], tokens["none"])
    assert torch.equal(tokens["static"], tokens["none"])
    with model.disable_adapter():
        assert not torch.equal(model.generate(input_ids=prompt, max_new_tokens=8, min_new_tokens=8), tokens["none"])


@every_family
def test_fusing_projections_never_loses_the_atoms(family):
    model = wake(adapted(family, family.linear))
    if not hasattr(base := model.base_model.model, "fuse_qkv_projections"):
        pytest.skip("nothing to fuse")
    before = family.run(model)
    sentence = refusal(base.fuse_qkv_projections)
    assert sentence is None or "cannot be fused while atoms are attached" in sentence
    assert torch.equal(family.run(model), before)

    fused = family.model()
    fused.fuse_qkv_projections()
    sentence = refusal(lambda: wake(attach(fused, family.linear)))
    assert sentence is None or "its projections were fused, so it is not used" in sentence
    if sentence is None:
        assert_close(family.run(fused), before, atol=1e-5, rtol=0)


def refusal(action: Callable) -> str | None:
    try:
        action()
    except UserError as error:
        return str(error)
    return None


@pytest.mark.slow
@pytest.mark.parametrize("backend, names", [("aot_eager", ["all"]), ("inductor", ["GPT-2"])])
def test_compiled_as_one_graph_a_block_is_the_same(backend, names):
    """In a process of its own: jaxtyping's checks are not what a user compiles."""
    script = Path(__file__).with_name("compiled_families.py")
    result = subprocess.run(
        [sys.executable, script, backend, ROOT, *names], capture_output=True, text=True, timeout=600
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert "same outputs, same gradients" in result.stdout
