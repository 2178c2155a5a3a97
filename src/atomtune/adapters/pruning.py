"""Pruning: atoms that the board dropped are removed from the tensors, the file and the configuration.

    board.keep(40)      the others take no part in the selection: S = σ(κ ∘ A X W_s), κ_m = 0 for a dropped atom
    model.prune()       the others are removed: the same S without their columns, so the same ΔO = S D

Of M atoms K are left: (C_i + C_o)·K numbers. The paper counts C_i·M + ρ·C_o·M, ρ = K/M, because it keeps the encoder of
all M. Addresses stay the same: the id of every atom and the number of every layer are saved with the weights.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from atomtune.adapters.attention import AttentionAtoms
from atomtune.adapters.config import AtomConfig
from atomtune.adapters.guard import guard
from atomtune.adapters.layer import AtomLayer, named_layers
from atomtune.errors import UserError


@dataclass
class Pruned:
    """The size of an adapter after pruning, over all layers."""

    atoms_before: int = 0
    """M."""
    atoms: int = 0
    """K."""
    layers: int = 0
    """Number of layers that still have atoms."""
    numbers: int = 0
    """(C_i + C_o)·K, the numbers that are stored."""
    numbers_in_the_paper: int = 0
    """C_i·M + C_o·K, as the paper counts."""


def prune(model: nn.Module, config: AtomConfig, adapter: str) -> Pruned:
    """Prune the layers of `model` and update the adapter's configuration, for `AtomModel.prune`."""
    found = named_layers(model, adapter)
    kept = {name: layer.dictionary(adapter).kept for name, layer in found.items()}
    if all(mask is not None and not mask.any() for mask in kept.values()):
        raise UserError("every atom was dropped, and nothing would be left of the adapter: keep at least one.")
    left, result = {}, Pruned()
    for name, layer in found.items():
        dictionary, mask = layer.dictionary(adapter), kept[name]
        result.atoms_before += dictionary.num_atoms
        result.numbers_in_the_paper += layer.in_features * dictionary.num_atoms
        if mask is not None and not mask.any():
            _remove(model, name, layer, adapter)
            continue
        dictionary.prune()
        left[name] = dictionary.num_atoms
        result.atoms += dictionary.num_atoms
        result.layers += 1
        result.numbers += (layer.in_features + layer.out_features) * dictionary.num_atoms
        result.numbers_in_the_paper += layer.out_features * dictionary.num_atoms
    guard(model)
    config.target_modules, config.num_atoms_pattern = list(left), left
    config.layers_to_transform = config.layers_pattern = None
    return result


def _remove(model: nn.Module, name: str, layer: AtomLayer, adapter: str) -> None:
    """Remove the adapter from one layer; if it was the only one, restore the frozen layer."""
    del layer.atoms_dictionaries[adapter]  # not with PEFT's delete_adapter, which would activate another adapter
    if isinstance(layer, AttentionAtoms):
        del layer.mix_first[adapter]
    if layer.atoms_dictionaries:
        return
    if isinstance(layer, AttentionAtoms):
        layer.detach()
        return
    for parent in model.modules():  # may be inside the wrappers of other adapters
        for last, child in parent.named_children():
            if child is layer:
                setattr(parent, last, layer.get_base_layer())
