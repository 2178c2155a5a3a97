"""Cut an adapter down: what the board dropped leaves the tensors, the file and the configuration.

    board.keep(40)      the others take no part in the selection: S = σ(κ ∘ A X W_s), κ_m = 0 for a dropped atom
    prune(model)        the others are gone: the same S without their columns, so the same ΔO = S D

Of M atoms K are left: (C_i + C_o)·K numbers. The paper counts C_i·M + ρ·C_o·M, ρ = K/M, because it keeps the encoder of
all M. Addresses stay true: every atom has its id and every layer its number for life, saved with the weights.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from torch import nn

from atomtune.adapters import AtomLayer, AttentionAtoms
from atomtune.adapters.layer import refuse_fusing
from atomtune.errors import UserError
from atomtune.steering import AtomBoard
from atomtune.tracing import bare_model


@dataclass
class Pruned:
    """What pruning left of an adapter, in all layers together."""

    atoms_before: int = 0
    """M."""
    atoms: int = 0
    """K."""
    layers: int = 0
    """Layers that still carry atoms."""
    numbers: int = 0
    """(C_i + C_o)·K, what is stored."""
    numbers_in_the_paper: int = 0
    """C_i·M + C_o·K, what the paper would count."""


def prune(model: nn.Module, adapter: str = "default") -> Pruned:
    """Make permanent what `board.keep`, `drop` and `only` chose. Outputs stay as they are; the adapter shrinks.

    Layers left with no atom lose the adapter. The adapter's configuration names the layers and their numbers of atoms,
    so that it saves and loads as any other. Raises `UserError` when nothing was kept.
    """
    if not AtomBoard(model, adapter).kept:
        raise UserError("every atom was dropped, and nothing would be left of the adapter: keep at least one.")
    bare, left, result = bare_model(model), {}, Pruned()
    for name, layer in list(bare.named_modules()):
        if not isinstance(layer, AtomLayer) or adapter not in layer.atoms_dictionaries:
            continue
        dictionary = layer.dictionary(adapter)
        result.atoms_before += dictionary.num_atoms
        result.numbers_in_the_paper += layer.in_features * dictionary.num_atoms
        if dictionary.kept is not None and not dictionary.kept.any():
            _remove(bare, name, layer, adapter)
            continue
        dictionary.prune()
        left[re.sub(r"(\.processor|\.base_layer)+$", "", name)] = dictionary.num_atoms
        result.atoms += dictionary.num_atoms
        result.layers += 1
        result.numbers += (layer.in_features + layer.out_features) * dictionary.num_atoms
        result.numbers_in_the_paper += layer.out_features * dictionary.num_atoms
    for module in bare.modules():
        bare_again = not any(isinstance(inner, AtomLayer) for inner in module.modules())
        if bare_again and vars(module).get("fuse_projections") is refuse_fusing:
            del module.fuse_projections
    peft: Any = model
    config = peft.peft_config[adapter]
    config.target_modules, config.num_atoms_pattern = list(left), left
    config.layers_to_transform = config.layers_pattern = None
    return result


def _remove(bare: nn.Module, name: str, layer: AtomLayer, adapter: str) -> None:
    """Take the adapter out of one layer; when it was the only one there, the frozen layer is itself again."""
    del layer.atoms_dictionaries[adapter]  # not with PEFT's delete_adapter, which would activate another adapter
    if isinstance(layer, AttentionAtoms):
        del layer.mix_first[adapter]
    if layer.atoms_dictionaries:
        return
    if isinstance(layer, AttentionAtoms):
        layer.detach()
    else:
        parent, _, last = name.rpartition(".")
        setattr(bare.get_submodule(parent), last, layer.get_base_layer())
