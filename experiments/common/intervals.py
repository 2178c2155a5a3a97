"""Numbers over subjects: 95 % bootstrap intervals, and the claims that are read off them.

A subject is drawn with all its numbers, so differences are paired by subject. A difference whose interval holds 0 is
called no difference.
"""

from collections.abc import Sequence

import numpy as np
from scipy.stats import spearmanr

from experiments.common.report import HOLDS, NO_DIFFERENCE, NOT_HERE, Claim

RESAMPLES = 10_000


Numbers = Sequence[float] | np.ndarray


def interval(numbers: Numbers) -> tuple[float, float]:
    """95 % of the means of 10,000 resamples of the subjects."""
    drawn = np.random.default_rng(0).choice(np.asarray(numbers), (RESAMPLES, len(numbers)))
    low, high = np.quantile(drawn.mean(1), (0.025, 0.975))
    return float(low), float(high)


def shown(numbers: Numbers, digits: int = 3, sign: str = "") -> str:
    """Mean and interval: "0.731 [0.700, 0.762]"; with `sign="+"`, of differences."""
    return "{0:{f}} [{1:{f}}, {2:{f}}]".format(np.mean(numbers), *interval(numbers), f=f"{sign}.{digits}f")


def sided(differences: Sequence[float], sign: int = 1) -> str:
    """The verdict on paired differences that should be above 0 (below it, for a `sign` of -1)."""
    low, high = interval(differences)
    if low <= 0 <= high:
        return NO_DIFFERENCE
    return HOLDS if sign * low > 0 else NOT_HERE


def paired(claim: str, differences: Sequence[float], sign: int = 1, item: str = "", what: str = "") -> Claim:
    """A claim on numbers that should be above 0 (below it, for a `sign` of -1), one for each subject: `what` they are,
    differences if nothing is said."""
    side, number = "above" if sign > 0 else "below", shown(differences, sign="+")
    rule = f"the 95 % interval of the {what or 'paired difference'} is {side} 0; if it holds 0, no difference"
    said = f"{what} {number}" if what else number
    return Claim(claim, said, rule, sided(differences, sign), item=item, brief=f"{claim}: {said}")


def trend(dial: Sequence[float], scores: Sequence[float]) -> float:
    """Spearman's rank correlation of a score with a dial, of one subject; 0 for a score that never changes."""
    if len({*scores}) < 2:
        return 0.0
    return float(spearmanr(dial, scores).statistic)  # pyright: ignore[reportAttributeAccessIssue]
