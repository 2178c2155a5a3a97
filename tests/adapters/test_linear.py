"""Linear atoms against y + σ(x W_s) D written out, in float64."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from transformers.pytorch_utils import Conv1D

from atomtune.adapters import AtomConfig, LinearAtoms
from atomtune.method.dictionary import measuring_floors
from tests.adapters import plain


def linear_atoms(dtype: torch.dtype = torch.float64, base: Any = None, **options) -> LinearAtoms:
    torch.manual_seed(0)
    layer = LinearAtoms((base or nn.Linear(6, 7)).to(dtype).requires_grad_(False))
    config = AtomConfig(target_modules=["v"], num_atoms=16, density=0.25, threshold=0.3, **options)
    layer.update_layer("default", config, config.num_atoms)
    return layer


@pytest.mark.parametrize("base", [nn.Linear(6, 7), Conv1D(7, 6)], ids=["Linear", "Conv1D"])
@pytest.mark.parametrize("activation", ["topk", "batch_topk", "soft", "relu", "jumprelu"])
def test_linear_atoms_add_sigma_of_x_W_s_times_D(activation, base):
    layer = linear_atoms(base=base, activation=activation)
    nn.init.normal_(layer.dictionary("default").decoder.weight)
    x = torch.randn(2, 3, 5, 6, dtype=torch.float64)
    assert_close(layer(x), plain.linear(layer, x), atol=1e-10, rtol=0)
    assert not torch.allclose(layer(x), base(x))


def test_with_zero_atoms_the_layer_is_the_base_layer():
    layer = linear_atoms(torch.float32)
    x = torch.randn(5, 6)
    assert torch.equal(layer(x), layer.base_layer(x))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("activation", ["topk", "batch_topk", "soft", "relu", "jumprelu"])
def test_a_token_at_which_no_atom_fires_gets_the_output_of_the_base_to_the_bit(activation, dtype):
    """y + φ(σ(x W_s)) D, φ(s) = s where |s| is above the floor and 0 elsewhere."""
    layer = linear_atoms(dtype, activation=activation).eval()
    dictionary = layer.dictionary("default")
    nn.init.normal_(dictionary.decoder.weight)
    others, x = torch.randn(200, 6).to(dtype), torch.randn(200, 6).to(dtype)
    with measuring_floors([dictionary]):
        layer(others)
    dictionary.floor.set(0.99)
    λ = dictionary.floor.threshold
    assert λ is not None
    codes = dictionary.sigma(dictionary.coefficients(x)).double()
    codes = codes.where(codes.abs() > λ.double(), 0)
    silent = ~codes.any(-1)
    output, base = layer(x), layer.base_layer(x)
    assert silent.any() and not silent.all()
    integers = {8: torch.int64, 4: torch.int32, 2: torch.int16}[dtype.itemsize]
    assert torch.equal(output[silent].view(integers), base[silent].view(integers))
    eps = torch.finfo(dtype).eps  # the sum over the atoms, and then with the base, is rounded to it: a few units
    assert_close(
        output.double(), base.double() + codes @ dictionary.decoder.weight.double(), atol=8 * eps, rtol=2 * eps
    )


def test_gradients_reach_the_encoder_and_the_atoms_only():
    layer = linear_atoms()
    nn.init.normal_(layer.dictionary("default").decoder.weight)
    layer(torch.randn(5, 6, dtype=torch.float64)).sum().backward()
    with_gradient = {name for name, parameter in layer.named_parameters() if parameter.grad is not None}
    assert with_gradient == {
        "atoms_dictionaries.default.encoder.weight",
        "atoms_dictionaries.default.decoder.weight",
    }


def test_disabled_or_inactive_adapters_do_nothing():
    layer = linear_atoms()
    nn.init.normal_(layer.dictionary("default").decoder.weight)
    x = torch.randn(5, 6, dtype=torch.float64)
    layer.set_adapter("another")
    assert torch.equal(layer(x), layer.base_layer(x))
    layer.set_adapter("default")
    layer.enable_adapters(False)
    assert torch.equal(layer(x), layer.base_layer(x))
    layer.enable_adapters(True)
    assert not torch.equal(layer(x), layer.base_layer(x))


@pytest.mark.parametrize(("activation", "share"), [("topk", 0.1), ("soft", 1.0), ("relu", 1.0)])
def test_bf16_autocast_stays_within_two_percent(activation, share):
    """‖ΔO‖ = share · ‖O‖; top-k swaps nearly equal atoms when their coefficients are rounded."""
    layer = linear_atoms(torch.float32, activation=activation)
    D = layer.dictionary("default").decoder.weight
    nn.init.normal_(D)
    x = torch.randn(500, 6)
    base = layer.base_layer(x)
    D.data *= share * base.norm() / (layer(x) - base).norm()
    exact = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = layer(x)
    assert (rounded.float() - exact).norm() / exact.norm() < 0.02
