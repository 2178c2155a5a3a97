"""What an address on a board gives: one atom, some atoms of a layer, or the layer, each with its gain."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from atomtune.addresses import written
from atomtune.errors import UserError
from atomtune.method.dictionary import SparseDictionary


@dataclass(eq=False, repr=False, slots=True)
class Atom:
    """One atom: row `index` of the dictionary of a layer, the module `name` of the model."""

    dictionary: SparseDictionary
    index: int
    name: str = ""

    def __repr__(self) -> str:
        dropped = "" if self.kept else ", dropped"
        return f"<{self.address} of {self.name}: head {self.head}, gain {self.gain:g}{dropped}>"

    @property
    def address(self) -> str:
        return f"L{int(self.dictionary.layer)}[{int(self.dictionary.id[self.index])}]"

    @property
    def mask(self) -> Bool[Tensor, " atoms"]:
        """True at the row of the atom, of all atoms of the layer."""
        return torch.arange(self.dictionary.num_atoms, device=self.dictionary.id.device) == self.index

    @property
    def head(self) -> int:
        """The attention head whose map mixes the codes of this atom."""
        return int(self.dictionary.head[self.index])

    @property
    def direction(self) -> Float[Tensor, " out"]:
        """d_m, the row of D: what the atom adds to the layer's output."""
        return self.dictionary.atoms()[self.index]

    @property
    def gain(self) -> float:
        """g, how strongly the atom acts: 1 as trained, 0 silent, below 0 reversed."""
        return float(self.dictionary.gain[self.index])

    @gain.setter
    def gain(self, gain: Any) -> None:
        self.dictionary.gain[self.index] = _gains(gain, 1).item()

    @property
    def kept(self) -> bool:
        """Whether the atom takes part in the selection."""
        return self.dictionary.kept is None or bool(self.dictionary.kept[self.index])


@dataclass(eq=False, repr=False, slots=True)
class Atoms:
    """Some atoms of one layer, the module `name` of the model. Iterating gives each `Atom`."""

    dictionary: SparseDictionary
    name: str = ""
    ids: Sequence[int] | None = None
    """None: all of the layer."""

    def __repr__(self) -> str:
        return f"<{self.address} of {self.name}: {len(self):,} atom{'' if len(self) == 1 else 's'}>"

    @property
    def address(self) -> str:
        return written(int(self.dictionary.layer), self.ids)

    @property
    def mask(self) -> Bool[Tensor, " atoms"]:
        """True at the rows of these atoms, of all atoms of the layer."""
        own = self.dictionary.id
        return torch.ones_like(own, dtype=torch.bool) if self.ids is None else torch.isin(own, own.new_tensor(self.ids))

    def __len__(self) -> int:
        return int(self.mask.sum())

    def __iter__(self) -> Iterator[Atom]:
        return (Atom(self.dictionary, index, self.name) for index in self.mask.nonzero().flatten().tolist())

    @property
    def gain(self) -> Float[Tensor, " atoms"]:
        """g of these atoms; assign one number, or one number for each atom."""
        own = self.dictionary.gain
        return own if self.ids is None else own[self.mask]

    @gain.setter
    def gain(self, gain: Any) -> None:
        own = self.dictionary.gain
        own[self.mask] = _gains(gain, len(self)).to(own).expand(len(self))


class Layer(Atoms):
    """All atoms of one layer, the module `name` of the model."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"<{self.address} = {self.name}: {len(self):,} atoms, density {self.density:.3g}>"

    @property
    def density(self) -> float:
        """ρ = k/M of this layer."""
        return self.dictionary.sigma.density

    @density.setter
    def density(self, density: float) -> None:
        self.dictionary.sigma.set_density(density)

    @property
    def floor(self) -> float:
        """q of this layer (see `AtomBoard.floor`)."""
        return plain(self.dictionary.floor.share.double().mean())

    @floor.setter
    def floor(self, floor: int | float) -> None:
        self.dictionary.floor.set(floor)


def plain(value: float | Tensor) -> float:
    """A float32 in the fewest digits: 0.8, not 0.800000011920929."""
    return float(str(np.float32(float(value))))  # float: a tensor may be on an accelerator


def _gains(gain: Any, count: int) -> Tensor:
    """One gain, or one for each of `count` atoms. Raises `UserError` for anything else."""
    try:
        gains = torch.as_tensor(gain, dtype=torch.float32)
    except (TypeError, ValueError, RuntimeError):
        gains = torch.tensor(torch.nan)
    if gains.shape not in ((), (count,)) or not gains.isfinite().all():
        each = f", or {count} of them, one for each atom" if count > 1 else ""
        raise UserError(f"a gain is a finite number{each}, got {gain!r}.")
    return gains
