"""AtomModel: PEFT's interface to a method. Finds the layers, adds atoms to them, saves, loads and removes the atoms.

On disk the tensors are named after the layer that the atoms adapt, not after the module that holds them in memory:

    …attn1.processor.atoms_dictionaries.default.encoder.weight   in memory
    …attn1.atoms_encoder.weight                                  in adapter_model.safetensors
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, cast

import torch
from diffusers.models.attention_processor import Attention
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils.other import get_pattern_key
from psutil import virtual_memory
from torch import Tensor, nn

from atomtune.adapters.attention import AttentionAtoms
from atomtune.adapters.combining import Layers, Part, combine
from atomtune.adapters.config import AtomConfig
from atomtune.adapters.formats import current
from atomtune.adapters.guard import guard
from atomtune.adapters.layer import AtomLayer, adapted_layers, adapted_name, named_layers, refuse_merging
from atomtune.adapters.linear import LinearAtoms
from atomtune.adapters.pruning import Pruned, prune
from atomtune.adapters.targets import TARGETS, preset_targets, why_not
from atomtune.errors import UserError


class AtomModel(BaseTuner):
    """A frozen model with atoms in it: `get_peft_model(model, AtomConfig(...)).base_model`."""

    prefix = "atoms_"
    # Of every method, because a LoRA may share the model: it is switched on and off, and deleted, by its name too.
    tuner_layer_cls = BaseTunerLayer
    target_module_mapping: ClassVar[dict[str, list[str] | str]] = TARGETS

    def __init__(self, model: nn.Module, peft_config: Any, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        refuse_taken_name(model, adapter_name, "ATOMS")
        super().__init__(model, peft_config, adapter_name, *args, **kwargs)

    def _prepare_adapter_config(self, peft_config: AtomConfig, model_config: dict) -> AtomConfig:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Without targets, those of the model's family, as PEFT's own methods do."""
        if peft_config.target_modules is None:
            peft_config.target_modules = preset_targets(self.model)
            peft_config.__post_init__()  # which raises if layers_to_transform does not fit the preset
        return peft_config

    def _prepare_model(self, peft_config: PeftConfig, model: nn.Module) -> None:
        """Raise `UserError` for unsuitable targets, before anything is changed."""
        inside_adapters = tuple(
            f"{name}." for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)
        )
        for name, _ in model.named_modules():
            if name.startswith(inside_adapters or "\0") or not self._check_target_module_exists(peft_config, name):
                continue
            if (reason := why_not(model, name)) is not None:
                raise UserError(f"{name} cannot carry atoms: {reason}.")
        self._refuse_too_many(cast(AtomConfig, peft_config), model)

    def _refuse_too_many(self, config: AtomConfig, model: nn.Module) -> None:
        """Raise `UserError` if the atoms do not fit into memory, before any of it is taken."""
        numbers = 0
        for name, module in model.named_modules():
            if self._check_target_module_exists(config, name) and (width := _widths(module)):
                numbers += width * self._num_atoms(config, name)
        parameter = next(model.parameters(), None)
        device = torch.device("meta") if parameter is None else parameter.device
        if device.type == "cpu":
            free = virtual_memory().available
        elif device.type == "cuda":
            free = torch.cuda.mem_get_info(device)[0]
        else:
            return
        if 4 * numbers > free:
            raise UserError(
                f"num_atoms = {config.num_atoms:,} would need {4 * numbers / 2**30:,.0f} GiB, and {free / 2**30:,.0f} "
                "GiB of memory are free: give fewer atoms."
            )

    def _num_atoms(self, config: AtomConfig, name: str) -> int:
        key = get_pattern_key(list(config.num_atoms_pattern), name)
        return config.num_atoms_pattern.get(key, config.num_atoms)

    def _create_and_replace(
        self,
        peft_config: AtomConfig,  # pyright: ignore[reportIncompatibleMethodOverride]
        adapter_name: str,
        target: Any,
        target_name: str,
        parent: Any,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        if isinstance(target, Attention):
            layer = target.processor
            if not isinstance(layer, AttentionAtoms):
                layer = AttentionAtoms.attach(target)
        else:
            # Wrap the innermost layer, inside other adapters' wrappers, so that their names and files stay the same.
            while isinstance(target, BaseTunerLayer) and not isinstance(target, LinearAtoms):
                parent, target_name, target = target, "base_layer", target.base_layer  # pyright: ignore[reportAttributeAccessIssue]
            layer = target if isinstance(target, LinearAtoms) else LinearAtoms(target)
            setattr(parent, target_name, layer)
        layer.update_layer(adapter_name, peft_config, self._num_atoms(peft_config, current_key))

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Add the atoms, and number the layers: the L17 of L17[137]. Atoms that are loaded later bring their own
        numbers."""
        self.tuner_layer_cls = AtomLayer  # adding atoms does not switch a LoRA on or off
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        del self.tuner_layer_cls
        for number, layer in enumerate(adapted_layers(model, adapter_name)):
            layer.dictionary(adapter_name).layer.fill_(number)
        guard(model)
        if hasattr(model, "_skip_layerwise_casting_patterns"):  # diffusers', which skips LoRA layers by its own list
            skipped = model._skip_layerwise_casting_patterns or ()
            model._skip_layerwise_casting_patterns = tuple(dict.fromkeys((*skipped, *AtomLayer.adapter_layer_names)))  # pyright: ignore

    @torch.no_grad()
    def add_weighted_adapter(
        self,
        adapters: Sequence[str],
        weights: Sequence[float | int],
        adapter_name: str,
        combination_type: str = "cat",
    ) -> None:
        """Make one adapter out of several that are loaded, as LoRA's method of this name does; activate it yourself.

        "cat" concatenates: exactly the weighted sum of their ΔO, scales included, whatever their sizes and layers.
        "linear" sums W_s and D entry by entry; see `adapters.combining`. Dropped atoms stay out. Raises `UserError`.
        """
        if adapter_name in self.peft_config:
            raise UserError(f"there already is an adapter {adapter_name!r}: choose another name.")
        if unknown := [name for name in adapters if name not in self.peft_config]:
            raise UserError(f"there is no adapter {unknown[0]!r}: expected some of {', '.join(self.peft_config)}.")
        if len(weights) != len(adapters):
            raise UserError(f"there must be one weight for each adapter, got {len(weights)} for {len(adapters)}.")
        parts = [
            Part(repr(name), cast(AtomConfig, self.peft_config[name]), self._layers(name), float(weight))
            for name, weight in zip(adapters, weights)
        ]
        self.peft_config[adapter_name], layers = combine(parts, combination_type)
        self.inject_adapter(self.model, adapter_name)
        for name, layer in named_layers(self.model, adapter_name).items():
            dictionary = layer.dictionary(adapter_name)
            dictionary.load_state_dict(layers[name])
            dictionary.requires_grad_(False)

    def prune(self, adapter_name: str = "default") -> Pruned:
        """Make permanent what `board.keep`, `drop` and `only` chose. Outputs stay as they are; the adapter shrinks.

        Layers without any atom left lose the adapter. The adapter's configuration names the layers and their numbers of
        atoms, so that it saves and loads as any other. Raises `UserError` when nothing was kept, or where the weights
        are offloaded.
        """
        if adapter_name not in self.peft_config:
            raise UserError(f"there is no adapter {adapter_name!r}: expected {', '.join(self.peft_config)}.")
        return prune(self.model, cast(AtomConfig, self.peft_config[adapter_name]), adapter_name)

    def _layers(self, adapter_name: str) -> Layers:
        """The adapter's tensors as they act now: scaled, and without the atoms that were dropped."""
        layers = {}
        for name, layer in named_layers(self.model, adapter_name).items():
            dictionary = layer.dictionary(adapter_name)
            tensors = {key: tensor.clone() for key, tensor in _readable(dictionary.state_dict()).items()}
            tensors["decoder.weight"] *= dictionary.scale
            if dictionary.kept is not None:
                kept = dictionary.kept.bool()
                rows = {key: tensor[kept] for key, tensor in tensors.items() if key not in ("sigma.k", "layer")}
                tensors |= rows
            if len(tensors["id"]):
                layers[name] = tensors
        if not layers:
            raise UserError(f"the adapter {adapter_name!r} has no atoms left: bring some back with board.reset().")
        return layers

    def _check_merge_allowed(self) -> None:
        refuse_merging()

    def _unload_and_optionally_merge(self, merge: bool = True, *args: Any, **kwargs: Any) -> nn.Module:
        if merge:
            self._check_merge_allowed()
        for module in list(self.model.modules()):
            if isinstance(module, AttentionAtoms):
                module.detach()
        super()._unload_and_optionally_merge(False, *args, **kwargs)
        guard(self.model)
        return self.model

    @classmethod
    def _get_adapter_state_dict(
        cls,
        model: nn.Module,
        config: PeftConfig,
        adapter_name: str,
        state_dict: dict[str, Tensor],
        unwanted_adapter_names: list[str],
    ) -> dict[str, Tensor]:
        """This adapter's atoms only, also when adapters of other methods share the model."""
        entries = super()._get_adapter_state_dict(model, config, adapter_name, state_dict, unwanted_adapter_names)
        own = {key: tensor for key, tensor in entries.items() if f".atoms_dictionaries.{adapter_name}." in key}
        return _readable(own)

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        layer, found, tensor = key.partition(f".atoms_dictionaries.{adapter_name}.")
        if found:
            return f"{adapted_name(layer)}.{cls.prefix}{tensor}"
        return super()._remove_adapter_name_from_key(key, adapter_name)

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: PeftConfig, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """From names on disk to names in memory. Raises `UserError` unless the two sets of atoms are the same."""
        entries = super()._remap_adapter_state_dict_for_load(model, config, adapter_name, current(state_dict))
        wanted = {key for key in model.state_dict() if f".atoms_dictionaries.{adapter_name}." in key}
        missing = wanted - entries.keys()
        left_over = {key for key in entries.keys() - wanted if f".{cls.prefix}" in key}
        if missing or left_over:
            what = f"lacks {min(missing)}" if missing else f"has {min(left_over)}, which this model has no place for"
            raise UserError(f"the saved adapter {what}: it was made for another model or another target_modules.")
        return entries


def _widths(module: nn.Module) -> int:
    """C_i + C_o of a layer that can carry atoms."""
    if isinstance(module, Attention):
        return module.query_dim + module.out_dim
    sides = [(getattr(module, f"{kind}_features", None), getattr(module, old, None)) for kind, old in _SIDES]
    return sum(new or old or 0 for new, old in sides)


_SIDES = (("in", "nx"), ("out", "nf"))  # of an `nn.Linear`, and of GPT-2's `Conv1D`


def refuse_taken_name(model: nn.Module, adapter_name: str, kind: str) -> None:
    """Raise `UserError` if an adapter of another of PEFT's methods than `kind` has the name: PEFT would forget it."""
    there = getattr(model, "peft_config", {}).get(adapter_name)
    if there is not None and there.peft_type != kind:
        raise UserError(
            f"the model already has an adapter {adapter_name!r}, of the method {there.peft_type.value}: give this one "
            "another adapter_name."
        )


def _readable(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors. Raises `UserError` if they cannot be read, because they are offloaded."""
    if any(tensor.is_meta for tensor in tensors.values()):
        raise UserError("atoms cannot be saved or merged while the model is offloaded: call remove_all_hooks() first.")
    return tensors
