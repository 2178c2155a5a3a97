"""A LoRA as atoms is the same model."""

from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch.testing import assert_close
from transformers import GPT2Config, GPT2LMHeadModel

from atomtune.errors import UserError
from atomtune.lora.conversion import lora_to_atoms, singular_directions
from atomtune.steering import board
from tests.adapters.tiny import atom_config, run, transformer

TARGETS = ["attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0"]


def lora(**options):
    options = {"r": 3, "lora_alpha": 5, "target_modules": TARGETS, "init_lora_weights": False} | options
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return get_peft_model(transformer(), LoraConfig(**options)).eval()


@pytest.mark.parametrize("principal", [False, True])
@pytest.mark.parametrize("options", [{}, {"rank_pattern": {"0.attn1.to_v": 2}, "use_rslora": True}])
@torch.no_grad()
def test_outputs_are_the_same(principal, options):
    model = lora(**options)
    expected = run(model)
    atoms = lora_to_atoms(model, principal=principal)
    assert (run(atoms) - expected).abs().max() < 1e-6
    assert (run(transformer()) - expected).abs().max() > 1e-2
    assert len(board(atoms)) == 2 * 4 * 3 - (1 if options else 0)


def gpt2_with_lora(targets) -> Any:
    """A GPT-2 in float64, whose linear layers are `Conv1D`: their weights are [in, out]."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        shape = GPT2Config(vocab_size=50, n_positions=16, n_embd=12, n_layer=2, n_head=2)
        config = LoraConfig(r=3, lora_alpha=5, target_modules=targets, fan_in_fan_out=True, init_lora_weights=False)
        return get_peft_model(GPT2LMHeadModel(shape).double().eval(), config).eval()


TOKENS = torch.randint(50, (2, 8), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("principal", [False, True])
@torch.no_grad()
def test_a_lora_beside_conv1d_becomes_atoms_by_the_same_formula(principal):
    """W x + b + α/r B A x, with W [in, out] of GPT-2, written out in float64."""
    model = gpt2_with_lora(["c_attn", "c_proj", "c_fc"])
    expected = model(input_ids=TOKENS).logits
    conv: Any = model.get_base_model().transformer.h[1].mlp.c_fc
    x = torch.randn(4, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    A, B = conv.lora_A["default"].weight, conv.lora_B["default"].weight
    formula = x @ conv.base_layer.weight + conv.base_layer.bias + 5 / 3 * (x @ A.T) @ B.T
    atoms: Any = lora_to_atoms(model, principal=principal)
    assert_close(atoms.get_base_model().transformer.h[1].mlp.c_fc(x), formula, atol=1e-10, rtol=0)
    assert_close(atoms(input_ids=TOKENS).logits, expected, atol=1e-10, rtol=0)
    assert len(board(atoms)) == 2 * 4 * 3
    with atoms.disable_adapter():
        assert not torch.allclose(atoms(input_ids=TOKENS).logits, expected)


@torch.no_grad()
def test_dropping_atoms_is_taking_components_out_of_the_lora(tmp_path):
    model = lora()
    for name, parameter in model.named_parameters():
        if "lora_A" in name:
            parameter[1] = 0
    expected = run(model)
    atoms = lora_to_atoms(lora())
    board(atoms).drop(f"L{layer}[1]" for layer in range(8))
    assert (run(atoms) - expected).abs().max() < 1e-6
    board(atoms).reset()
    atoms.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(transformer(), str(tmp_path)).eval()
    assert torch.equal(run(again), run(atoms))


def test_singular_directions_are_those_of_the_product():
    generator = torch.Generator().manual_seed(0)
    A, B = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((3, 7), (5, 3)))
    left, right = singular_directions(A, B, 0.5)[::-1]
    assert_close(left @ right, 0.5 * B @ A)
    S = torch.linalg.svdvals(0.5 * B @ A)[:3]
    assert_close(left.T @ left, S.diag(), atol=1e-12, rtol=0)
    assert_close(right @ right.T, S.diag(), atol=1e-12, rtol=0)


def test_what_is_not_a_plain_lora_is_refused():
    with pytest.raises(UserError, match=r"more than B A x \(DoRA"):
        lora_to_atoms(lora(use_dora=True))
    with pytest.raises(UserError, match="expected a model with the LoRA 'default' and no other adapter"):
        lora_to_atoms(get_peft_model(transformer(), atom_config()))
    with pytest.raises(UserError, match="of another name: load the LoRA alone"):
        lora_to_atoms(lora(), "style")
    with pytest.raises(UserError, match="proj is a Conv2d: only linear layers carry atoms"):
        lora_to_atoms(lora(target_modules=["pos_embed.proj"]))
    with pytest.raises(UserError, match=r"attn1.to_q has a VeloraLinearVariant, which may be more than B A x"):
        lora_to_atoms(lora(velora_config={}))


def test_a_lora_that_is_merged_into_the_weights_is_refused():
    """Its atoms would add it a second time."""
    model = lora()
    model.merge_adapter()
    with pytest.raises(UserError, match=r"merged into the base weights: call unmerge_adapter\(\) first"):
        lora_to_atoms(model)
    model.unmerge_adapter()
    lora_to_atoms(model)
