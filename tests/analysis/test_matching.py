"""Matching of atoms: a shuffled dictionary is found again, whatever its signs and scales."""

from itertools import permutations

import pytest
import torch
from torch.testing import assert_close

from atomtune.analysis.matching import likeness, match


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def test_likeness_is_the_cosine_between_contributions(generator):
    S, T = (torch.randn(7, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    D, E = (torch.randn(3, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    found = likeness(S, D, T, E)
    for a in range(3):
        for b in range(3):
            one, other = torch.outer(S[:, a], D[a]).flatten(), torch.outer(T[:, b], E[b]).flatten()
            assert float(found[a, b]) == pytest.approx(float(one @ other / one.norm() / other.norm()))


def test_shuffled_scaled_and_turned_atoms_are_found_again(generator):
    S, D = torch.randn(40, 6, generator=generator), torch.randn(6, 8, generator=generator)
    order = torch.randperm(6, generator=generator)
    factor = torch.tensor([1.0, -1, 2, -2, 0.5, -0.5])
    found = likeness(S, D, S[:, order] * factor, D[order] * factor[:, None])
    rows, columns = match(found)
    assert torch.equal(order[columns], rows)
    assert_close(found[rows, columns], torch.ones(6))


def test_the_assignment_has_the_largest_sum(generator):
    found = torch.rand(4, 5, generator=generator)
    rows, columns = match(found)
    best = max(sum(found[i, p[i]] for i in range(4)) for p in permutations(range(5), 4))
    assert float(found[rows, columns].sum()) == pytest.approx(float(best))
