"""AtomBoard: what a user holds. The atoms of one adapter, all layers together, with the dials that act while sampling.

    board = atomtune.board(pipe)
    board.density = 0.02

Atoms have addresses: `L17[137]` is the atom with id 137 in the 17th adapted layer, counted from 0.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from atomtune.adapters import AtomLayer, adapted_layers
from atomtune.dictionary import SparseDictionary
from atomtune.errors import UserError


class AtomBoard:
    """The atoms of one adapter. `len(board)` is their number.

    Raises `UserError` when the model does not carry the adapter.
    """

    def __init__(self, model: nn.Module, adapter: str = "default") -> None:
        self.adapter = adapter
        self.layers: list[AtomLayer] = adapted_layers(model, adapter)
        """In the order of their addresses: L0, L1, ..."""
        if not self.layers:
            raise UserError(
                f"{type(model).__name__} carries no atoms under the name {adapter!r}: attach or load an adapter."
            )

    @property
    def dictionaries(self) -> list[SparseDictionary]:
        return [layer.dictionary(self.adapter) for layer in self.layers]

    @property
    def num_atoms(self) -> int:
        return sum(dictionary.num_atoms for dictionary in self.dictionaries)

    def __len__(self) -> int:
        return self.num_atoms

    @property
    def density(self) -> float:
        """ρ, the share of a layer's atoms that one token may use. Where layers differ, the mean over all atoms."""
        densities = {dictionary.density for dictionary in self.dictionaries}
        if len(densities) == 1:
            return densities.pop()
        return sum(dictionary.density * dictionary.num_atoms for dictionary in self.dictionaries) / self.num_atoms

    @density.setter
    def density(self, density: float) -> None:
        for layer in self.layers:
            layer.set_density(self.adapter, density)


def board(model_or_pipe: Any, adapter: str = "default") -> AtomBoard:
    """The board of an adapter on a model, or on the denoiser of a diffusers pipeline."""
    if isinstance(model_or_pipe, nn.Module):
        return AtomBoard(model_or_pipe, adapter)
    return AtomBoard(getattr(model_or_pipe, "transformer", None) or model_or_pipe.unet, adapter)
