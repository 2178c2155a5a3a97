"""The base class of attention atoms and linear atoms: a `SparseDictionary` for each adapter, with PEFT's interface."""

from __future__ import annotations

import re
import warnings
from typing import cast

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from atomtune.adapters.config import AtomConfig
from atomtune.errors import UserError
from atomtune.method.dictionary import SparseDictionary


class AtomLayer(BaseTunerLayer):
    """A frozen layer with atoms beside it. `atoms_dictionaries` maps an adapter's name to its `SparseDictionary`."""

    adapter_layer_names = ("atoms_dictionaries",)
    atoms_dictionaries: nn.ModuleDict
    in_features: int
    out_features: int
    heads: int = 1
    # diffusers' layerwise casting sets this to turn off the cast of PEFT's layers. Atoms cast inside encoder and
    # decoder, where the weight already has the precision of the computation, so nothing needs to be turned off.
    cast_input_dtype_enabled: bool = True

    def update_layer(self, adapter_name: str, config: AtomConfig, num_atoms: int) -> None:
        """Add an adapter with new atoms, on the device and in the precision of the base layer's weights."""
        self.atoms_dictionaries[adapter_name] = SparseDictionary(
            self.in_features,
            num_atoms,
            self.out_features,
            sigma=config.sigma_of(num_atoms),
            heads=self.heads,
            unit_encoder=config.unit_encoder,
            floor=config.floor,
        )
        if not config.init_weights:
            nn.init.normal_(self.dictionary(adapter_name).decoder.weight)
        self._move_adapter_to_device_of_base_layer(adapter_name)

    def _get_base_layer_device_and_dtype(self, base_layer: nn.Module) -> tuple[torch.device | None, torch.dtype | None]:
        """Device and precision of new atoms. A base that is stored in 8 bits computes in more bits, and so do its
        atoms."""
        device, dtype = super()._get_base_layer_device_and_dtype(base_layer)
        return device, dtype if dtype is not None and dtype.itemsize > 1 else None

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Raise `UserError` if atoms of this layer would be merged: those of the named adapters, or else the active
        ones."""
        if any(name in self.atoms_dictionaries for name in (adapter_names or self.active())):
            refuse_merging()

    def unmerge(self) -> None:
        """Warn, as PEFT's own layers do, that there is nothing to undo."""
        warnings.warn("Atoms are never merged into the base weights, so there is nothing to unmerge.", stacklevel=2)

    def dictionary(self, adapter_name: str) -> SparseDictionary:
        return cast(SparseDictionary, self.atoms_dictionaries[adapter_name])

    def active(self) -> list[str]:
        """Names of the active adapters in this layer, in the order of their activation."""
        return (
            [] if self.disable_adapters else [name for name in self.active_adapters if name in self.atoms_dictionaries]
        )

    def set_density(self, adapter_name: str, density: float) -> None:
        """Let each token use max(1, round(ρM)) atoms of this adapter, without training or compiling again."""
        self.dictionary(adapter_name).sigma.set_density(density)

    @torch.no_grad()
    def set_scale(self, adapter_name: str, scale: float) -> None:
        """Multiply this adapter's ΔO by `scale`. Does nothing if the layer does not have the adapter."""
        if adapter_name in self.atoms_dictionaries:
            self.dictionary(adapter_name).scale.fill_(scale)

    @torch.no_grad()
    def scale_layer(self, scale: float) -> None:
        """Multiply the scale of every active adapter (diffusers calls this around a forward with a `scale`)."""
        for name in self.active():
            self.dictionary(name).scale.mul_(scale)

    def unscale_layer(self, scale: float | None = None) -> None:
        """Undo `scale_layer(scale)`; without a value, set the scales back to 1."""
        for name in self.active():
            self.set_scale(name, 1.0 if scale is None else self.dictionary(name).scale.item() / scale)


def adapted_layers(model: nn.Module, adapter: str = "default") -> list[AtomLayer]:
    """The layers that carry this adapter's atoms, in the order of their addresses: L0, L1, ..."""
    return [
        module for module in model.modules() if isinstance(module, AtomLayer) and adapter in module.atoms_dictionaries
    ]


def named_layers(model: nn.Module, adapter: str = "default") -> dict[str, AtomLayer]:
    """`adapted_layers`, by the names of the frozen layers."""
    return {
        adapted_name(name): module
        for name, module in model.named_modules()
        if isinstance(module, AtomLayer) and adapter in module.atoms_dictionaries
    }


def adapted_name(name: str) -> str:
    """The name of the frozen layer that a module's atoms adapt, without the names of wrappers: "blocks.0.attn1" for
    "blocks.0.attn1.processor", "to_v" for "to_v.base_layer". Files and configurations use this name."""
    return re.sub(r"(\.processor|\.base_layer)+$", "", name)


def refuse_merging() -> None:
    raise UserError(
        "atoms cannot be merged into the base weights, because σ makes ΔO a nonlinear function of the input: keep "
        "the adapter beside the model, or take it out with unload()."
    )
