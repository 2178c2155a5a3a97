"""Bootstrap intervals over subjects, and the verdicts that are read off them."""

import numpy as np
import pytest

from experiments.common.intervals import interval, paired, shown, trend
from experiments.common.report import HOLDS, NO_DIFFERENCE, NOT_HERE


def test_the_interval_is_that_of_the_mean():
    numbers = np.random.default_rng(1).normal(3, 2, 400)
    low, high = interval(numbers.tolist())
    assert (low, high) == pytest.approx((numbers.mean() - 1.96 * 0.1, numbers.mean() + 1.96 * 0.1), abs=0.03)


@pytest.mark.parametrize(
    "differences, sign, verdict",
    [
        ([0.1, 0.2, 0.3], 1, HOLDS),
        ([0.1, 0.2, 0.3], -1, NOT_HERE),
        ([-0.1, -0.2, -0.3], -1, HOLDS),
        ([-0.1, 0.2, 0.05], 1, NO_DIFFERENCE),
        ([0.0, 0.0, 0.0], 1, NO_DIFFERENCE),
    ],
)
def test_a_verdict_is_the_side_of_0_that_the_interval_is_on(differences, sign, verdict):
    claim = paired("better", differences, sign)
    assert claim.verdict == verdict
    assert claim.brief == f"better: {shown(differences, sign='+')}" and ("above" in claim.rule) == (sign > 0)


def test_a_trend_is_a_correlation_of_ranks():
    assert trend((0.01, 0.02, 0.04), [1, 2, 30]) == 1
    assert trend((0.01, 0.02, 0.04), [3, 2, 1]) == -1
    assert trend((0.01, 0.02, 0.04), [2, 2, 2]) == 0
