"""coverage against the plain formula."""

import math

import pytest
import torch
from torch.testing import assert_close

from atomtune.analysis.locality import coverage


def test_coverage_is_the_exponential_of_the_entropy():
    one, two, every = torch.zeros(8), torch.zeros(8), torch.ones(8)
    one[3], two[:2] = -5.0, 1.0
    assert_close(coverage(torch.stack([one, two, every])), torch.tensor([1 / 8, 2 / 8, 1.0], dtype=torch.float64))
    p = torch.tensor([0.1, 0.2, 0.7])
    expected = math.exp(-sum(x * math.log(x) for x in (0.1, 0.2, 0.7))) / 3
    assert float(coverage(3 * p)) == pytest.approx(expected, rel=1e-6)
