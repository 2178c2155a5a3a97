"""Atoms as a PEFT method: the layers that hold a `SparseDictionary` beside a frozen layer, and their registration."""

import peft  # noqa: F401  first: the hook on its import loads the modules below, which must not be half-loaded

from atomtune.adapters.attention import AttentionAtoms
from atomtune.adapters.config import AtomConfig
from atomtune.adapters.layer import AtomLayer, adapted_layers
from atomtune.adapters.linear import LinearAtoms
from atomtune.adapters.model import AtomModel
from atomtune.adapters.registration import register

register()

__all__ = ["AtomConfig", "AtomLayer", "AtomModel", "AttentionAtoms", "LinearAtoms", "adapted_layers", "register"]
