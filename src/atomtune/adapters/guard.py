"""Guards: methods that would silently lose atoms raise an error while atoms are attached, and work again afterwards.

diffusers' `set_processor` replaces a processor, and the atoms with it; `fuse_projections` replaces processors too, and
computes projections without calling their modules. A module with atoms gets its own version of each method, which
raises `UserError`. So do PEFT's own methods where they would merge an adapter into quantized weights.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from atomtune.adapters.layer import AtomLayer
from atomtune.errors import UserError


def guard(model: nn.Module) -> None:
    """Add guards to modules that have atoms, and remove them from modules that no longer have any."""
    for module in model.modules():
        processor = getattr(module, "processor", None)
        _put(module, "set_processor", _KeepProcessor(processor) if isinstance(processor, AtomLayer) else None)
        if hasattr(type(module), "fuse_projections"):
            carries = any(isinstance(inner, AtomLayer) for inner in module.modules())
            _put(module, "fuse_projections", refuse_fusing if carries else None)


def _put(module: nn.Module, method: str, instead: Any) -> None:
    """Replace a method of this module by `instead`, or restore the method of its class if `instead` is None."""
    if instead is not None:
        setattr(module, method, instead)
    elif isinstance(own := vars(module).get(method), _KeepProcessor) or own is refuse_fusing:
        delattr(module, method)


class _KeepProcessor:
    """Replaces `set_processor`."""

    def __init__(self, atoms: AtomLayer) -> None:
        self.atoms = atoms

    def __call__(self, processor: object) -> None:
        if processor is not self.atoms:
            raise UserError(
                f"{type(processor).__name__} cannot replace the processor of an attention layer that carries atoms, "
                "because the atoms would be silently lost: unload the adapter first."
            )


def refuse_fusing(*_args: object, **_kwargs: object) -> None:
    """Replaces `fuse_projections`."""
    raise UserError(
        "projections cannot be fused while atoms are attached, because the atoms would be silently lost: unload the "
        "adapter first."
    )


def guard_quantized(model: Any) -> None:
    """Let PEFT's methods that merge raise `UserError` where the base of this `PeftModel` is quantized. Atoms are never
    merged."""
    if getattr(model.get_base_model(), "hf_quantizer", None) is not None and model.peft_type != "ATOMS":
        for method in ("merge_adapter", "merge_and_unload"):
            setattr(model.base_model, method, refuse_merging_into_quantized)


def refuse_merging_into_quantized(*_args: object, **_kwargs: object) -> None:
    """Replaces `merge_adapter` and `merge_and_unload`."""
    raise UserError(
        "an adapter cannot be merged into quantized weights, because what it changes is smaller than their rounding: "
        "merge it into the base that is not quantized."
    )
