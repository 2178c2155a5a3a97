"""Addresses: `L17[137]` is the atom with id 137 in the 17th adapted layer, counted from 0, and `L17` that layer.

Both numbers are saved with the adapter, so pruning does not change an address. Boards and traces find their atoms with
the same function.
"""

import re
from collections.abc import Sequence

from torch import Tensor

from atomtune.errors import UserError

_ADDRESS = re.compile(r"L(\d+)(?:\[(\d+)\])?")


def find(address: str, layers: Sequence[tuple[int, Tensor]], owner: str) -> tuple[int, int | None]:
    """Find an address among `layers`, given as (number, ids of its atoms [M]): return the index of the layer, and the
    row of the atom in the layer (None for a whole layer). Raises `UserError` if the `owner` has no such address."""
    if match := _ADDRESS.fullmatch(address.strip()):
        number, id = match.groups()
        for place, (layer, ids) in enumerate(layers):
            if layer == int(number):
                if id is None:
                    return place, None
                for row in (ids == int(id)).nonzero().flatten().tolist():
                    return place, row
    if not layers:
        raise UserError(f"there is no {address!r} in this {owner}: it has no layers.")
    example = next((f", or one of its atoms, such as L{layer}[{int(ids[0])}]" for layer, ids in layers if len(ids)), "")
    raise UserError(
        f"there is no {address!r} in this {owner}: expected a layer from L{layers[0][0]} to L{layers[-1][0]}{example}."
    )
