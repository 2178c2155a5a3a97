"""Ladders: the numbers of atoms, and the densities, with which images are drawn to see what fewer atoms do."""

from __future__ import annotations

from atomtune.method.coding import atoms_per_token
from atomtune.steering import AtomBoard

COUNTS = (4, 12, 40, 120, 400)
FACTORS = (1 / 8, 1 / 4, 1 / 2, 1, 2, 4)  # of the density of training


def counts(below: int) -> list[int]:
    """Numbers of atoms to keep, all smaller than `below`, smallest first."""
    return [count for count in COUNTS if count < below]


def densities(board: AtomBoard) -> list[float]:
    """Densities at which a token uses different numbers of atoms, lowest first, with the board's present density among
    them.

    An empty list if σ has no density.
    """
    if any(dictionary.sigma.dial != "density" for dictionary in board.dictionaries):
        return []
    own, size = board.density, max(dictionary.num_atoms for dictionary in board.dictionaries)
    by_k = {atoms_per_token(size, own): own}
    for factor in FACTORS:
        density = min(1.0, own * factor)
        by_k.setdefault(atoms_per_token(size, density), density)
    return [by_k[k] for k in sorted(by_k)]
