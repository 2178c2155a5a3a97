"""coding: each σ against its formula, each solver of eq. 5 against what defines its solution, in float64."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from atomtune.errors import UserError
from atomtune.method.coding import atoms_per_token, fista, ista, largest, relu_threshold, soft_threshold, top_k


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(
    ("num_atoms", "density", "k"), [(256, 0.04, 10), (64, 0.04, 3), (16, 0.01, 1), (100, 1.0, 100), (1, 0.5, 1)]
)
def test_k_is_max_of_one_and_round_of_density_times_atoms(num_atoms, density, k):
    assert atoms_per_token(num_atoms, density) == k


@pytest.mark.parametrize(
    ("density", "sentence"),
    [
        (4.0, "density must be in (0, 1], got 4. Did you mean 0.04 (4 %)?"),
        (0.0, "density must be in (0, 1], got 0."),
        (-0.5, "density must be in (0, 1], got -0.5."),
        (1000.0, "density must be in (0, 1], got 1000."),
    ],
)
def test_density_out_of_range_is_one_sentence(density, sentence):
    with pytest.raises(UserError) as error:
        atoms_per_token(256, density)
    assert str(error.value) == sentence


@given(seed=st.integers(0, 2**16), threshold=st.floats(0, 3))
def test_thresholds_follow_their_formulas(seed, threshold):
    c = normal(7, 5, seed=seed)
    assert_close(soft_threshold(c, threshold), c.sign() * (c.abs() - threshold).clamp(min=0), atol=1e-12, rtol=0)
    assert_close(relu_threshold(c, threshold), (c - threshold).clamp(min=0), atol=1e-12, rtol=0)


@given(seed=st.integers(0, 2**16), atoms=st.integers(1, 40), data=st.data())
def test_top_k_keeps_the_k_largest_by_magnitude_with_their_signs(seed, atoms, data):
    k = data.draw(st.integers(1, atoms))
    c = normal(3, 4, atoms, seed=seed)
    codes = top_k(c, k)
    assert ((codes != 0).sum(-1) == k).all()
    kept = codes != 0
    assert torch.equal(codes[kept], c[kept])
    smallest_kept = c.abs().where(kept, torch.inf).amin(-1)
    largest_dropped = c.abs().where(~kept, -torch.inf).amax(-1)
    assert (smallest_kept >= largest_dropped).all()


@given(seed=st.integers(0, 2**16), data=st.data())
def test_top_k_with_a_tensor_k_equals_top_k_with_an_integer(seed, data):
    k_max = data.draw(st.integers(1, 20))
    k = data.draw(st.integers(1, k_max))
    c = normal(6, 20, seed=seed)
    assert torch.equal(top_k(c, torch.tensor(k), k_max), top_k(c, k))


def test_top_k_keeps_exactly_k_of_equal_magnitudes():
    assert (top_k(torch.ones(5, 12), 4) != 0).sum(-1).tolist() == [4] * 5


@given(seed=st.integers(0, 2**16), atoms=st.integers(1, 300), rows=st.integers(0, 5), data=st.data())
def test_without_order_the_largest_are_the_same(seed, atoms, rows, data):
    """In float32, where numpy finds them; also with infinite and equal ones."""
    k = data.draw(st.integers(1, atoms))
    c = normal(2, rows, atoms, seed=seed).float()
    c[..., data.draw(st.integers(0, atoms - 1))] = data.draw(st.sampled_from([0.0, -0.0, torch.inf, -torch.inf]))
    assert torch.equal(largest(c, k, ordered=False).sort().values, largest(c, k).sort().values)
    equal = c.round()
    index = largest(equal, k, ordered=False)
    assert index.shape == (2, rows, k) and all(len({*row}) == k for row in index.flatten(0, 1).tolist())
    assert torch.equal(equal.abs().gather(-1, index).sort().values, equal.abs().topk(k).values.flip(-1))


@pytest.mark.parametrize("k", [3, torch.tensor(3)])
def test_gradient_of_top_k_reaches_the_kept_entries_only(k):
    c = normal(4, 9).requires_grad_()
    codes = top_k(c, k, 5 if isinstance(k, torch.Tensor) else None)
    upstream = normal(4, 9, seed=1)
    codes.backward(upstream)
    assert_close(c.grad, upstream * (codes != 0), atol=0, rtol=0)


@pytest.mark.parametrize("solve", [ista, fista])
def test_with_orthonormal_atoms_the_solvers_reach_the_closed_form(solve):
    D = torch.linalg.qr(normal(6, 6)).Q
    x = normal(5, 6, seed=1)
    assert_close(solve(x, D, 0.3, steps=50), soft_threshold(x @ D.T, 0.3), atol=1e-10, rtol=0)


@pytest.mark.parametrize(("solve", "steps"), [(ista, 20_000), (fista, 4_000)])
def test_with_more_atoms_than_channels_the_solvers_satisfy_the_optimality_conditions(solve, steps):
    """s solves eq. 5 exactly when |(x − sD) Dᵀ| ≤ λ everywhere, with equality and the sign of s where s is not zero."""
    D, x, threshold = normal(12, 6), normal(4, 6, seed=1), 0.5
    s = solve(x, D, threshold, steps=steps)
    correlation = (x - s @ D) @ D.T
    used = s.abs() > 1e-7
    assert 0 < used.sum() < used.numel()
    assert (correlation.abs() <= threshold + 1e-8).all()
    assert_close(correlation[used], threshold * s[used].sign(), atol=1e-8, rtol=0)


def test_fista_is_ahead_of_ista_after_the_same_number_of_steps():
    D, x, threshold = normal(12, 6), normal(4, 6, seed=1), 0.5

    def objective(s):
        return 0.5 * (x - s @ D).square().sum() + threshold * s.abs().sum()

    assert objective(fista(x, D, threshold, steps=30)) < objective(ista(x, D, threshold, steps=30))
