"""Fine-tune frozen transformers with sparse dictionaries of feature atoms: ΔO = σ(A X W_s) D.

    frozen layer     O                       A: attention map, X: the layer's input tokens
    adapted layer    O + σ(A X W_s) D        W_s: encoder, D: the atoms; only these two train

The public names are listed in `__init__.pyi`. Importing this package is cheap: torch, PEFT and diffusers are imported
when one of them is first used. It also registers the method with PEFT, as soon as PEFT itself is imported, so that
`PeftModel.from_pretrained` opens atom adapters.
"""

from typing import Any

import lazy_loader
from wrapt import register_post_import_hook

_public, _, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    if name != "__version__":
        return _public(name)
    from importlib.metadata import version

    return version("atomtune")


def __dir__() -> list[str]:
    return sorted({*__all__, "__version__", "__doc__", "__file__", "__name__", "__path__"})


def _register(_peft) -> None:
    from atomtune.adapters.registration import register

    register()


register_post_import_hook(_register, "peft")
