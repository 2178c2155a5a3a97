"""What was tried around the library holds while it is on, and only then."""

import pytest
import torch
from peft import get_peft_model
from torch import nn
from torch.testing import assert_close

from atomtune import AtomConfig, adapted_layers
from experiments.activations.tried import normalised_heads, resampled


def adapted() -> nn.Module:
    """One linear layer with 8 atoms, 2 a token."""
    torch.manual_seed(0)
    config = AtomConfig(target_modules=["0"], num_atoms=8, density=0.25)
    model = get_peft_model(nn.Sequential(nn.Linear(4, 4)), config)  # pyright: ignore[reportArgumentType]
    nn.init.normal_(dictionary_of(model).decoder.weight)
    return model


def dictionary_of(model: nn.Module):
    (layer,) = adapted_layers(model)
    return layer.dictionary("default")


def test_normalised_heads_choose_among_coefficients_of_size_one():
    x, own = torch.randn(5, 4), dictionary_of(model := adapted())
    before = model(x)
    with normalised_heads():
        during = model(x)
    c = x @ own.encoder.weight.T
    c = c / c.square().mean().sqrt()
    kept = torch.zeros_like(c).scatter(1, c.abs().topk(2).indices, 1.0)
    frozen = adapted().get_submodule("base_model.model.0.base_layer")
    assert_close(during, frozen(x) + (c * kept) @ own.decoder.weight)
    assert not torch.equal(before, during)
    assert torch.equal(adapted()(x), before)


@pytest.mark.parametrize("steps", [1, 2])
def test_atoms_that_no_token_fires_start_again_every_second_step(steps):
    x, own = torch.randn(1, 4), dictionary_of(model := adapted())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    start, dead = own.decoder.weight.clone(), ~(own.codes(x) != 0).any(0)
    with resampled(every=2, until=4):
        for _ in range(steps):
            model(x).sum().backward()
            optimizer.step()
    changed = (own.decoder.weight != start).any(1)
    assert torch.equal(changed, dead if steps == 2 else torch.zeros_like(dead))
    assert not own.decoder.weight[changed].any()
