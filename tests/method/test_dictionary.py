"""SparseDictionary against σ(x W_s) D written out, and its seating of atoms in heads."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from atomtune.errors import UserError
from atomtune.method.coding import relu_threshold, soft_threshold, top_k
from atomtune.method.dictionary import SparseDictionary
from atomtune.method.sigma import SigmaConfig

SIGMA = {
    "topk": lambda c: top_k(c, 3),
    "soft": lambda c: soft_threshold(c, 0.4),
    "relu": lambda c: relu_threshold(c, 0.4),
}


def filled(num_atoms: int = 10, heads: int = 1, **dials) -> SparseDictionary:
    """A float64 dictionary, 6 wide to 7 wide, whose atoms are not zero."""
    dictionary = SparseDictionary(6, num_atoms, 7, SigmaConfig(**dials), heads=heads).double()
    generator = torch.Generator().manual_seed(0)
    dictionary.reset_parameters(generator)
    torch.nn.init.normal_(dictionary.decoder.weight, generator=generator)
    return dictionary


@pytest.mark.parametrize("activation", SIGMA)
def test_output_is_sigma_of_x_W_s_times_D(activation):
    dictionary = filled(activation=activation, density=0.3, threshold=0.4)
    W_s, D = dictionary.encoder.weight.T, dictionary.decoder.weight
    x = torch.randn(2, 5, 6, dtype=torch.float64)
    assert_close(dictionary.codes(x), SIGMA[activation](x @ W_s), atol=1e-10, rtol=0)
    assert_close(dictionary(x), SIGMA[activation](x @ W_s) @ D, atol=1e-10, rtol=0)


def test_gain_and_scale_multiply_after_selection():
    dictionary = filled(density=0.3)
    x = torch.randn(5, 6, dtype=torch.float64)
    S, D = dictionary.codes(x), dictionary.decoder.weight
    g = torch.linspace(0, 1, 10, dtype=torch.float64)
    dictionary.gain.copy_(g)
    dictionary.scale.fill_(0.5)
    assert torch.equal(dictionary.codes(x), S)
    assert_close(dictionary(x), 0.5 * (S * g) @ D, atol=1e-10, rtol=0)


def test_starts_with_zero_atoms_and_an_encoder_of_variance_one_over_width():
    dictionary = SparseDictionary(400, 300, 20)
    assert not dictionary.decoder.weight.any()
    assert dictionary.encoder.weight.std().item() == pytest.approx(400**-0.5, rel=0.02)
    assert {name for name, _ in dictionary.named_parameters()} == {"encoder.weight", "decoder.weight"}


def test_a_seeded_generator_gives_the_same_encoder():
    a, b = (SparseDictionary(6, 10, 7) for _ in range(2))
    for dictionary in (a, b):
        dictionary.reset_parameters(torch.Generator().manual_seed(3))
    assert torch.equal(a.encoder.weight, b.encoder.weight)


@pytest.mark.parametrize(("density", "k"), [(0.1, 1), (0.3, 3), (0.6, 6), (1.0, 10)])
def test_density_changes_how_many_atoms_a_token_uses(density, k):
    dictionary = filled(density=0.3)
    dictionary.sigma.set_density(density)
    x = torch.randn(5, 6, dtype=torch.float64)
    assert ((dictionary.codes(x) != 0).sum(-1) == k).all()
    assert dictionary.sigma.density == density


def test_density_is_refused_where_a_threshold_decides():
    with pytest.raises(UserError, match="this adapter uses soft, whose dial is threshold"):
        filled(activation="soft").sigma.set_density(0.1)


@given(num_atoms=st.integers(1, 30), heads=st.integers(1, 8), shuffled=st.booleans())
def test_atoms_find_their_heads_and_come_back(num_atoms, heads, shuffled):
    """Any number of atoms on any number of heads, seated in order or, as after pruning, in any way."""
    dictionary = SparseDictionary(4, num_atoms, 4, heads=heads)
    if shuffled:
        generator = torch.Generator().manual_seed(num_atoms)
        dictionary.load_state_dict(
            dictionary.state_dict() | {"head": torch.randint(heads, (num_atoms,), generator=generator)}
        )
    coefficients = torch.randn(2, 3, num_atoms)
    split = dictionary.seating.split(coefficients)
    assert torch.equal(dictionary.seating.join(split), coefficients)
    for head in range(heads):
        mine = coefficients[..., dictionary.head == head]
        assert torch.equal(split[:, head, :, : mine.shape[-1]], mine)
        assert not split[:, head, :, mine.shape[-1] :].any()


def test_equal_heads_cost_no_copy():
    coefficients = torch.randn(2, 3, 12)
    assert SparseDictionary(4, 12, 4, heads=4).seating.split(coefficients).data_ptr() == coefficients.data_ptr()


def test_what_belongs_to_an_atom_is_saved_with_it():
    dictionary = filled(num_atoms=7, heads=4)
    assert dictionary.head.tolist() == [0, 0, 1, 1, 2, 2, 3]
    assert set(dictionary.state_dict()) == {
        *("encoder.weight", "decoder.weight", "gain", "usage"),
        *("id", "layer", "head", "group", "sigma.k", "floor.levels", "floor.share"),
    }
