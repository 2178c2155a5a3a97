"""Addresses: `L17[137]` is the atom with id 137 in the 17th adapted layer, counted from 0, and `L17` that layer.

`L17[0:40]` are the atoms with ids 0 to 39 that the layer has, as in Python, and `L17[0:40, 52, 60:]` these, 52, and all
from 60 on. Both numbers are saved with the adapter, so pruning does not change an address. Boards and traces find their
atoms with the same function.
"""

import re
from collections.abc import Iterable, Sequence
from itertools import groupby

from torch import Tensor

from atomtune.errors import UserError

_ADDRESS = re.compile(r"L(\d+)(?:\[([\d:,\s]+)\])?")
_SPAN = re.compile(r"\s*(?:(\d+)|(\d*):(\d*))\s*")


def find(address: str, layers: Sequence[tuple[int, Tensor]], owner: str) -> tuple[int, int | list[int] | None]:
    """Find an address among `layers`, given as (number, ids of its atoms [M]): return the index of the layer, and the
    row of the atom in the layer, the rows of several, or None for a whole layer. Raises `UserError` if the `owner` has
    no such address."""
    if match := _ADDRESS.fullmatch(address.strip()):
        number, spans = match.groups()
        for place, (layer, ids) in enumerate(layers):
            if layer == int(number):
                if spans is None:
                    return place, None
                if (rows := _rows(spans, ids.tolist())) is not None:
                    return place, rows[0] if spans.strip().isdecimal() else rows
    if not layers:
        raise UserError(f"there is no {address!r} in this {owner}: it has no layers.")
    first = next(((layer, int(ids[0])) for layer, ids in layers if len(ids)), None)
    example = f", or atoms of one, such as L{first[0]}[{first[1]}] or L{first[0]}[{first[1]}:]" if first else ""
    raise UserError(
        f"there is no {address!r} in this {owner}: expected a layer from L{layers[0][0]} to L{layers[-1][0]}{example}."
    )


def _rows(spans: str, ids: list[int]) -> list[int] | None:
    """The rows of the atoms in "0:40, 52"; None if it is not written so, or if one of its parts has no atom."""
    found: set[int] = set()
    for part in spans.split(","):
        if (match := _SPAN.fullmatch(part)) is None:
            return None
        one, first, end = (None if number in (None, "") else int(number) for number in match.groups())
        rows = {
            row
            for row, id in enumerate(ids)
            if (id == one if one is not None else (first or 0) <= id and (end is None or id < end))
        }
        if not rows:
            return None
        found |= rows
    return sorted(found)


def written(layer: int, ids: Iterable[int] | None) -> str:
    """The address of these atoms of a layer, the shortest that names no other id: "L3[7]", "L3[0:40,52]"; "L3" for
    None, the whole layer."""
    if ids is None:
        return f"L{layer}"
    runs = [[id for _, id in run] for _, run in groupby(enumerate(sorted(ids)), lambda pair: pair[1] - pair[0])]
    return f"L{layer}[{','.join(f'{run[0]}:{run[-1] + 1}' if len(run) > 1 else str(run[0]) for run in runs)}]"


def split(text: str) -> list[str]:
    """The addresses in "L17[137], L3[0:40,52], L5"."""
    return [part.strip() for part in re.split(r",(?![^\[]*\])", text)] if text.strip() else []
