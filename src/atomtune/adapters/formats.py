"""Adapter files as earlier versions wrote them.

before                         now
…atoms_dictionary.weight       …atoms_decoder.weight     D [C_o, M], now [M, C_o]: a row is an atom
…atoms_k                       …atoms_sigma.k
                               …atoms_floor.levels, …atoms_floor.share: no floor was measured
"""

import torch
from torch import Tensor

from atomtune.method.floor import LEVELS, UNMEASURED


def current(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of an adapter file by the names and in the shapes that they have now."""
    found = {}
    for key, tensor in tensors.items():
        before, last = key.rpartition(".atoms_")[::2]
        if last == "dictionary.weight":
            key, tensor = f"{before}.atoms_decoder.weight", tensor.T.contiguous()
        elif last == "k":
            key = f"{before}.atoms_sigma.k"
        found[key] = tensor
        if last == "gain":
            found.setdefault(f"{before}.atoms_floor.share", torch.zeros_like(tensor))
            unmeasured = tensor.new_full((len(tensor), len(LEVELS)), UNMEASURED)
            found.setdefault(f"{before}.atoms_floor.levels", unmeasured)
    return found
