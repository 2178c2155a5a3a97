"""Linear atoms against y + σ(x W_s) D written out, in float64."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from atomtune.adapters import AtomConfig, LinearAtoms
from atomtune.coding import relu_threshold, soft_threshold, top_k

SIGMA = {
    "topk": lambda c: top_k(c, 4),
    "soft": lambda c: soft_threshold(c, 0.3),
    "relu": lambda c: relu_threshold(c, 0.3),
}


def linear_atoms(dtype: torch.dtype = torch.float64, **options) -> LinearAtoms:
    torch.manual_seed(0)
    layer = LinearAtoms(nn.Linear(6, 7).to(dtype).requires_grad_(False))
    layer.update_layer(
        "default", AtomConfig(target_modules=["v"], num_atoms=16, density=0.25, threshold=0.3, **options)
    )
    return layer


@pytest.mark.parametrize("activation", SIGMA)
def test_linear_atoms_add_sigma_of_x_W_s_times_D(activation):
    layer = linear_atoms(activation=activation)
    dictionary = layer.dictionary("default")
    nn.init.normal_(dictionary.dictionary.weight)
    W_s, D = dictionary.encoder.weight.T, dictionary.dictionary.weight.T
    x = torch.randn(2, 3, 5, 6, dtype=torch.float64)
    assert_close(layer(x), layer.base_layer(x) + SIGMA[activation](x @ W_s) @ D, atol=1e-10, rtol=0)


def test_with_zero_atoms_the_layer_is_the_base_layer():
    layer = linear_atoms(torch.float32)
    x = torch.randn(5, 6)
    assert torch.equal(layer(x), layer.base_layer(x))


def test_gradients_reach_the_encoder_and_the_atoms_only():
    layer = linear_atoms()
    nn.init.normal_(layer.dictionary("default").dictionary.weight)
    layer(torch.randn(5, 6, dtype=torch.float64)).sum().backward()
    with_gradient = {name for name, parameter in layer.named_parameters() if parameter.grad is not None}
    assert with_gradient == {"dictionaries.default.encoder.weight", "dictionaries.default.dictionary.weight"}


def test_disabled_or_inactive_adapters_do_nothing():
    layer = linear_atoms()
    nn.init.normal_(layer.dictionary("default").dictionary.weight)
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
    D = layer.dictionary("default").dictionary.weight
    nn.init.normal_(D)
    x = torch.randn(500, 6)
    base = layer.base_layer(x)
    D.data *= share * base.norm() / (layer(x) - base).norm()
    exact = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = layer(x)
    assert (rounded.float() - exact).norm() / exact.norm() < 0.02
