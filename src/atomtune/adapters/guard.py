"""Guards: what would silently throw atoms away is refused while they are attached, and works again afterwards.

diffusers' `set_processor` replaces a processor without a word, and the atoms with it; `fuse_projections` replaces
processors too, and computes projections without calling them. A module that carries atoms gets a method of its own in
the place of each, which says so.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from atomtune.adapters.layer import AtomLayer
from atomtune.errors import UserError


def guard(model: nn.Module) -> None:
    """Put guards where atoms are now, and take them out where there are none any more."""
    for module in model.modules():
        processor = getattr(module, "processor", None)
        _put(module, "set_processor", _KeepProcessor(processor) if isinstance(processor, AtomLayer) else None)
        if hasattr(type(module), "fuse_projections"):
            carries = any(isinstance(inner, AtomLayer) for inner in module.modules())
            _put(module, "fuse_projections", refuse_fusing if carries else None)


def _put(module: nn.Module, method: str, instead: Any) -> None:
    """Let `instead`, or the class's own method again, answer for a method of this module."""
    if instead is not None:
        setattr(module, method, instead)
    elif isinstance(own := vars(module).get(method), _KeepProcessor) or own is refuse_fusing:
        delattr(module, method)


class _KeepProcessor:
    """Stands in for `set_processor`."""

    def __init__(self, atoms: AtomLayer) -> None:
        self.atoms = atoms

    def __call__(self, processor: object) -> None:
        if processor is not self.atoms:
            raise UserError(
                f"{type(processor).__name__} cannot replace the processor of an attention layer that carries atoms, "
                "because the atoms would be silently lost: unload the adapter first."
            )


def refuse_fusing(*_args: object, **_kwargs: object) -> None:
    """Stands in for `fuse_projections`."""
    raise UserError(
        "projections cannot be fused while atoms are attached, because the atoms would be silently lost: unload the "
        "adapter first."
    )
