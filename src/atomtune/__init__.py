"""Fine-tune frozen transformers with sparse dictionaries of feature atoms: ΔO = σ(A X W_s) D.

    frozen layer     O                       A: attention map, X: the layer's input tokens
    adapted layer    O + σ(A X W_s) D        W_s: encoder, D: the atoms; only these two train

Importing this package is cheap: torch, PEFT and diffusers are imported when a name below is first used. It also tells
PEFT about the method, as soon as PEFT itself is imported, so that `PeftModel.from_pretrained` opens atom adapters.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from wrapt import register_post_import_hook

from atomtune.errors import UserError

if TYPE_CHECKING:
    from atomtune.adapters import AtomConfig, AtomModel, adapted_layers
    from atomtune.analysis.examples import training_examples
    from atomtune.analysis.importance import importance
    from atomtune.analysis.influence import influence, influences
    from atomtune.analysis.overlap import overlap
    from atomtune.bases import load_base
    from atomtune.editing import edit
    from atomtune.lora.conversion import lora_to_atoms
    from atomtune.method.attention import DictionaryAttention, OrdinaryAttention
    from atomtune.method.dictionary import SparseDictionary
    from atomtune.sampling import generate
    from atomtune.steering import AtomBoard, board
    from atomtune.storage.folders import load_adapter, save_adapter
    from atomtune.storage.merging import merge
    from atomtune.tracing import trace
    from atomtune.training import CustomizeConfig, customize

_HOMES = {
    "AtomBoard": "atomtune.steering",
    "AtomConfig": "atomtune.adapters",
    "AtomModel": "atomtune.adapters",
    "CustomizeConfig": "atomtune.training",
    "DictionaryAttention": "atomtune.method.attention",
    "OrdinaryAttention": "atomtune.method.attention",
    "SparseDictionary": "atomtune.method.dictionary",
    "adapted_layers": "atomtune.adapters",
    "board": "atomtune.steering",
    "customize": "atomtune.training",
    "edit": "atomtune.editing",
    "generate": "atomtune.sampling",
    "importance": "atomtune.analysis.importance",
    "influence": "atomtune.analysis.influence",
    "influences": "atomtune.analysis.influence",
    "load_adapter": "atomtune.storage.folders",
    "load_base": "atomtune.bases",
    "lora_to_atoms": "atomtune.lora.conversion",
    "merge": "atomtune.storage.merging",
    "overlap": "atomtune.analysis.overlap",
    "save_adapter": "atomtune.storage.folders",
    "trace": "atomtune.tracing",
    "training_examples": "atomtune.analysis.examples",
}

__all__ = [
    "AtomBoard",
    "AtomConfig",
    "AtomModel",
    "CustomizeConfig",
    "DictionaryAttention",
    "OrdinaryAttention",
    "SparseDictionary",
    "UserError",
    "adapted_layers",
    "board",
    "customize",
    "edit",
    "generate",
    "importance",
    "influence",
    "influences",
    "load_adapter",
    "load_base",
    "lora_to_atoms",
    "merge",
    "overlap",
    "save_adapter",
    "trace",
    "training_examples",
]


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'atomtune' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _tell_peft(_peft) -> None:
    from atomtune.adapters.registration import register

    register()


register_post_import_hook(_tell_peft, "peft")
