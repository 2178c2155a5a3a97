"""Seating: which atom belongs to which attention head, and where its coefficient is in the tensor that is mixed.

Attention mixes the coefficients of one head with that head's map, and needs them as [heads, slots]. When the heads are
equal and in order this is a view. Otherwise each head gets as many slots as the largest head has atoms: `slots` is
the atom of each slot (M for an empty slot, which reads a zero), `places` the slot of each atom.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from atomtune.method.dials import Dials


class Seating(Dials):
    """The M atoms of a layer, divided among its heads in any way: M need not be a multiple of the number of heads.

    Args:
        heads: number of attention heads.
    """

    slots: Tensor | None
    places: Tensor | None

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self._lay_out(None, None)

    def seat(self, heads: Sequence[int], device: torch.device | None = None) -> None:
        """Compute the slots, given the head of each atom."""
        seats = [[atom for atom, head in enumerate(heads) if head == h] for h in range(self.heads)]
        width = max(map(len, seats))
        flat = [atom for seat in seats for atom in seat + [len(heads)] * (width - len(seat))]
        self._lay_out(None, None)
        if flat != list(range(len(heads))):
            place = {atom: slot for slot, atom in enumerate(flat)}
            places = [place[atom] for atom in range(len(heads))]
            self._lay_out(torch.tensor(flat, device=device), torch.tensor(places, device=device))

    def _lay_out(self, slots: Tensor | None, places: Tensor | None) -> None:
        self.register_buffer("slots", slots, persistent=False)
        self.register_buffer("places", places, persistent=False)

    def split(self, coefficients: Float[Tensor, "batch tokens atoms"]) -> Float[Tensor, "batch heads tokens slots"]:
        if self.slots is not None:
            coefficients = F.pad(coefficients, (0, 1)).index_select(-1, self.slots)
        return coefficients.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def join(self, mixed: Float[Tensor, "batch heads tokens slots"]) -> Float[Tensor, "batch tokens atoms"]:
        joined = mixed.transpose(1, 2).flatten(2)
        return joined if self.places is None else joined.index_select(-1, self.places)
