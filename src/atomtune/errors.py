"""The error for mistakes that a user can fix, and numbers in sentences."""

from __future__ import annotations

import operator
from typing import Any

SEEDS = 2**64
"""Seeds of torch's generators are from 0 to below this number."""


class UserError(ValueError):
    """What was wrong, what was expected and what to do, in one sentence.

    The command line prints the sentence alone and exits with code 2; from Python it is an ordinary `ValueError`.
    """


def check_seed(seed: Any, count: int = 1) -> None:
    """Raise `UserError` unless seed, seed + 1, ... (`count` of them) are whole numbers in the range of a generator."""
    try:
        fits = 0 <= operator.index(seed) <= SEEDS - count
    except TypeError:
        fits = False
    if not fits:
        last = f" (and {count - 1} after it)" if count > 1 else ""
        raise UserError(f"seed{last} must be a whole number from 0 to 2**64 - 1, got {seed!r}.")


def counted(count: int, thing: str) -> str:
    """A number with its noun: "1 image", "2 images"."""
    return f"{count:,} {thing}" + ("" if count == 1 else "s")
