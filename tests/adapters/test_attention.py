"""Attention atoms against eq. 8 and 9 written out in the paper's symbols, in float64."""

from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0
from torch.testing import assert_close

from atomtune.adapters import AtomConfig, AttentionAtoms, LinearAtoms
from atomtune.errors import UserError
from atomtune.method.dictionary import measuring_floors
from tests.adapters import plain

WIDTH, HEADS, TEXT_WIDTH = 24, 4, 10
CONFIG: dict[str, Any] = {"density": 0.25, "threshold": 0.3}


def attention(cross: bool = False, heads: int = HEADS, seed: int = 0, **options) -> Any:
    torch.manual_seed(seed)
    attn = Attention(
        WIDTH,
        cross_attention_dim=TEXT_WIDTH if cross else None,
        heads=heads,
        dim_head=WIDTH // heads,
        bias=True,
        **options,
    )
    return attn.eval().requires_grad_(False)


def attach(attn: Any, adapter: str = "default", seed: int = 1, **options) -> AttentionAtoms:
    """Attach atoms that are not zero."""
    atoms = attn.processor if isinstance(attn.processor, AttentionAtoms) else AttentionAtoms.attach(attn)
    config = AtomConfig(target_modules=["attn1"], **CONFIG | options)
    atoms.update_layer(adapter, config, config.num_atoms)
    D = atoms.dictionary(adapter).decoder.weight
    D.data.normal_(generator=torch.Generator().manual_seed(seed))
    atoms.set_adapter(list(atoms.atoms_dictionaries))
    return atoms


@pytest.mark.parametrize("mix_first", [True, False], ids=["mix-first", "shortcut"])
def test_where_no_atom_is_above_its_floor_the_layer_is_the_frozen_one_but_for_rounding(mix_first):
    """At another width the attention kernel may round otherwise."""
    attn, hidden = attention().double(), torch.randn(2, 7, WIDTH, dtype=torch.float64)
    atoms = attach(attn, mix_first=mix_first, num_atoms=20)
    with measuring_floors([atoms.dictionary("default")]):
        attn(hidden)
    atoms.dictionary("default").floor.set(1.0)
    silent = attn(hidden)
    atoms.enable_adapters(False)
    assert_close(silent, attn(hidden), atol=1e-15, rtol=1e-14)


@pytest.mark.parametrize("num_atoms", [20, 18, 3], ids=["divisible", "not-divisible", "fewer-than-heads"])
@pytest.mark.parametrize("cross", [False, True], ids=["self", "cross"])
@pytest.mark.parametrize("masked", [False, True], ids=["unmasked", "masked"])
@pytest.mark.parametrize("mix_first", [True, False], ids=["mix-first", "shortcut"])
@pytest.mark.parametrize("activation", ["topk", "batch_topk", "soft", "relu", "jumprelu"])
def test_attention_atoms_follow_equations_8_and_9(activation, mix_first, masked, cross, num_atoms):
    attn = attention(cross).double()
    atoms = attach(attn, activation=activation, mix_first=mix_first, num_atoms=num_atoms)
    generator = torch.Generator().manual_seed(2)
    hidden = torch.randn(2, 7, WIDTH, generator=generator, dtype=torch.float64)
    context = torch.randn(2, 5, TEXT_WIDTH, generator=generator, dtype=torch.float64) if cross else None
    mask = None
    if masked:  # additive, [batch, 1, keys]: the second sample does not see the last two keys
        mask = torch.zeros(2, 1, 5 if cross else 7, dtype=torch.float64)
        mask[1, :, -2:] = -10_000
    expected = plain.attention(attn, hidden, context, mask)
    output = attn(hidden, context, attention_mask=mask)
    assert_close(output, expected, atol=1e-10, rtol=0)
    atoms.enable_adapters(False)
    assert (output - attn(hidden, context, attention_mask=mask)).abs().max() > 0.1  # the atoms do something


@pytest.mark.parametrize("cross", [False, True], ids=["self", "cross"])
def test_with_zero_atoms_the_layer_is_the_base_layer(cross):
    attn = attention(cross)
    hidden, context = torch.randn(2, 7, WIDTH), torch.randn(2, 5, TEXT_WIDTH) if cross else None
    before = attn(hidden, context)
    attach(attn).dictionary("default").reset_parameters()
    assert_close(attn(hidden, context), before, atol=1e-6, rtol=0)


def test_everything_around_the_attention_is_as_in_the_stock_processor():
    """Group norm, qk norm, image-shaped input, residual and rescale, as UNets use them."""
    attn = attention(
        norm_num_groups=4, qk_norm="layer_norm", residual_connection=True, rescale_output_factor=1.7, eps=1e-5
    ).double()
    image = torch.randn(2, WIDTH, 3, 5, dtype=torch.float64)
    before = attn(image)
    dictionary = attach(attn).dictionary("default")
    adapted = attn(image)
    assert adapted.shape == image.shape
    dictionary.decoder.weight.data.zero_()
    assert_close(attn(image), before, atol=1e-10, rtol=0)
    assert (adapted - before).abs().max() > 0.1


def test_context_is_normalised_before_it_is_encoded():
    attn = attention(cross=True, cross_attention_norm="layer_norm").double()
    hidden, text = (torch.randn(2, n, w, dtype=torch.float64) for n, w in ((7, WIDTH), (5, TEXT_WIDTH)))
    attach(attn)
    output = attn(hidden, text)
    normed, attn.norm_cross = attn.norm_cross(text), None
    assert_close(output, attn(hidden, normed), atol=1e-10, rtol=0)


@pytest.mark.parametrize("mix_first", [True, False])
def test_single_head_attention_atoms_are_linear_atoms_on_the_values(mix_first):
    """One head, no output projection: A V + A σ(X W_s) D = A (V + σ(X W_s) D); and σ(A X W_s) D when A = 1."""
    attn = attention(heads=1, out_bias=False).double()
    attn.to_out[0] = torch.nn.Identity()
    X = torch.randn(2, 1 if mix_first else 7, WIDTH, dtype=torch.float64)  # with one token, A = 1 and the orders agree
    dictionary = attach(attn, num_atoms=20, mix_first=mix_first).dictionary("default")
    by_attention = attn(X)
    attn.processor.detach()

    attn.to_v = LinearAtoms(attn.to_v)
    attn.to_v.atoms_dictionaries["default"] = dictionary
    attn.to_v.set_adapter("default")
    assert_close(by_attention, attn(X), atol=1e-10, rtol=0)


def test_gradients_reach_the_encoder_and_the_atoms_only():
    attn = attention(cross=True)
    attach(attn, num_atoms=18)
    attn(torch.randn(2, 7, WIDTH), torch.randn(2, 5, TEXT_WIDTH)).square().sum().backward()
    with_gradient = {name for name, parameter in attn.named_parameters() if parameter.grad is not None}
    assert with_gradient == {f"processor.atoms_dictionaries.default.{part}.weight" for part in ("encoder", "decoder")}
    assert all(attn.get_parameter(name).grad.any() for name in with_gradient)


@pytest.mark.parametrize("mix_first", [True, False])
def test_gradients_equal_those_of_the_plain_formula(mix_first):
    attn = attention().double()
    dictionary = attach(attn, num_atoms=18, mix_first=mix_first).dictionary("default")
    weights = [dictionary.encoder.weight, dictionary.decoder.weight]
    X, upstream = torch.randn(2, 2, 7, WIDTH, dtype=torch.float64)
    ours = torch.autograd.grad((attn(X) * upstream).sum(), weights)
    theirs = torch.autograd.grad((plain.attention(attn, X) * upstream).sum(), weights)
    for our, their in zip(ours, theirs):
        assert_close(our, their, atol=1e-10, rtol=0)


def test_several_adapters_add_up_in_one_call(monkeypatch):
    attn = attention().double()
    hidden = torch.randn(2, 7, WIDTH, dtype=torch.float64)
    base = attn(hidden)
    atoms = attach(attn, "a", num_atoms=20)
    attach(attn, "b", seed=2, num_atoms=6, activation="soft", mix_first=False)
    deltas = {}
    for name in ("a", "b"):
        atoms.set_adapter(name)
        deltas[name] = attn(hidden) - base
    atoms.set_adapter(["a", "b"])
    calls = []
    sdpa = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional, "scaled_dot_product_attention", lambda *a, **k: calls.append(k) or sdpa(*a, **k)
    )
    assert_close(attn(hidden), base + deltas["a"] + deltas["b"], atol=1e-10, rtol=0)
    assert [call["scale"] for call in calls] == [(WIDTH // HEADS) ** -0.5]


@pytest.mark.parametrize("mix_first", [True, False], ids=["mix-first", "shortcut"])
@pytest.mark.parametrize(("activation", "share"), [("topk", 0.1), ("soft", 1.0), ("relu", 1.0)])
def test_bf16_autocast_stays_within_two_percent(activation, share, mix_first):
    """Base and adapter in float32 under autocast, ‖ΔO‖ = share · ‖O‖.

    The base alone is off by 0.5 %. Thresholds add nothing to speak of; top-k is not continuous, so that rounding swaps
    atoms of nearly equal coefficients: 5 to 9 % of ‖ΔO‖, whatever the precision of the encoder.
    """
    attn = attention()
    atoms = attach(attn, activation=activation, num_atoms=64, density=0.1, mix_first=mix_first)
    hidden = torch.randn(4, 64, WIDTH, generator=torch.Generator().manual_seed(2))
    atoms.enable_adapters(False)
    base = attn(hidden)
    atoms.enable_adapters(True)
    atoms.dictionary("default").decoder.weight.data *= share * base.norm() / (attn(hidden) - base).norm()
    exact = attn(hidden)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = attn(hidden)
    assert rounded.dtype == torch.bfloat16
    assert (rounded.float() - exact).norm() / exact.norm() < 0.02


def test_scale_and_density_act_at_once():
    attn = attention().double()
    hidden = torch.randn(2, 7, WIDTH, dtype=torch.float64)
    base = attn(hidden)
    atoms = attach(attn, num_atoms=20)
    full = attn(hidden) - base
    atoms.set_scale("default", 0.5)
    assert_close(attn(hidden) - base, 0.5 * full, atol=1e-10, rtol=0)
    atoms.scale_layer(4.0)
    assert_close(attn(hidden) - base, 2.0 * full, atol=1e-10, rtol=0)
    atoms.unscale_layer(4.0)
    assert_close(attn(hidden) - base, 0.5 * full, atol=1e-10, rtol=0)
    atoms.unscale_layer()
    assert_close(attn(hidden) - base, full, atol=1e-10, rtol=0)
    atoms.set_density("default", 0.1)
    fewer = attn(hidden)
    assert not torch.allclose(fewer - base, full)
    atoms.detach()
    attach(attn, num_atoms=20, density=0.1).atoms_dictionaries["default"].load_state_dict(
        atoms.atoms_dictionaries["default"].state_dict()
    )
    assert_close(attn(hidden), fewer, atol=1e-10, rtol=0)


def test_replacing_the_processor_or_fusing_is_refused_until_detached():
    attn = attention()
    stock = attn.processor
    atoms = AttentionAtoms.attach(attn)
    with pytest.raises(UserError, match="carries atoms, because the atoms would be silently lost: unload the adapter"):
        attn.set_processor(stock)
    with pytest.raises(UserError, match="cannot be fused while atoms are attached"):
        attn.fuse_projections()
    attn.set_processor(atoms)  # putting back what is there is fine
    atoms.detach()
    assert attn.processor is stock
    attn.fuse_projections()


@pytest.mark.parametrize(
    ("processor", "scale_qk"), [(AttnProcessor, False), (AttnProcessor, True), (AttnProcessor2_0, False)]
)
def test_scores_are_scaled_as_the_stock_processor_scales_them(processor, scale_qk):
    attn = attention(scale_qk=scale_qk, processor=processor()).double()
    hidden = torch.randn(2, 7, WIDTH, dtype=torch.float64)
    before = attn(hidden)
    attach(attn).dictionary("default").reset_parameters()
    assert_close(attn(hidden), before, atol=1e-10, rtol=0)
