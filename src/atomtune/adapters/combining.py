"""Combine several adapters into one: the arithmetic of merging, on the tensors of each layer.

    cat      D = [w₁D₁; w₂D₂], W_s = [W₁ W₂], each group of atoms with its own k:   ΔO = w₁ΔO₁ + w₂ΔO₂ exactly
    linear   W_s = Σ √|wᵢ| Wᵢ,  D = Σ sign(wᵢ) √|wᵢ| (gᵢ ∘ Dᵢ)   entry by entry, as the paper's supplement C.3 does

The names are PEFT's (`LoraModel.add_weighted_adapter`), and so is √w: one adapter alone at weight w gives w ΔO with
top-k. `linear` sums atoms that are not related to each other; it needs equal shapes, and its result has no guarantee.

Addresses after `cat`: those of the first adapter stay as they are. The ids of a later adapter's atoms are
raised by `first_id`, one number for all layers, the first id that is free in all of them. A layer that only a later
adapter has keeps its number if that is free, and else gets the next number after all others. `group` counts the
adapters.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from atomtune.adapters.config import AtomConfig
from atomtune.errors import UserError
from atomtune.method.floor import UNMEASURED

Layers = dict[str, dict[str, Tensor]]
"""Name of an adapted layer → the saved tensors of its `SparseDictionary`."""


@dataclass
class Part:
    """One of the adapters that are combined, and its weight."""

    name: str
    config: AtomConfig
    layers: Layers
    weight: float = 1.0

    @property
    def groups(self) -> int:
        """1, or the number of adapters it is a concatenation of."""
        return len(next(iter(self.layers.values()))["sigma.k"])

    @property
    def ids(self) -> int:
        """One more than the largest atom id in any layer."""
        return 1 + max(int(tensors["id"].max()) for tensors in self.layers.values())


def combine(parts: Sequence[Part], combination_type: str) -> tuple[AtomConfig, Layers]:
    """Combine several adapters into one. Raises `UserError` if that is impossible."""
    if len(parts) < 2:
        raise UserError(f"merging needs at least two adapters, got {len(parts)}.")
    if combination_type not in ("cat", "linear"):
        raise UserError(f"combination_type must be cat or linear, got {combination_type!r}.")
    for part in parts:
        if part.config.modules_to_save:
            raise UserError(
                f"{part.name} carries whole modules ({', '.join(part.config.modules_to_save)}), which cannot be "
                "merged: train it without modules_to_save."
            )
        _check_sigma(parts[0], part)
    return concatenate(parts) if combination_type == "cat" else add(parts)


def first_ids(parts: Sequence[Part]) -> list[int]:
    """What `concatenate` adds to the ids of each part."""
    firsts = [0]
    for part in parts[:-1]:
        firsts.append(firsts[-1] + part.ids)
    return firsts


def concatenate(parts: Sequence[Part]) -> tuple[AtomConfig, Layers]:
    """The union of the atoms: ΔO is exactly Σ wᵢ ΔOᵢ, for any sizes, heads and layers. Gains are kept."""
    groups, layers = sum(part.groups for part in parts), {}
    for name, number in _numbers(parts).items():
        found, before = [], 0
        k = torch.zeros(groups, dtype=torch.long)
        for part, first_id in zip(parts, first_ids(parts)):
            if name in part.layers:
                own = dict(part.layers[name])
                k[before : before + part.groups] = own.pop("sigma.k")
                own["id"] = own["id"] + first_id
                own["group"] = own["group"] + before
                own["decoder.weight"] = own["decoder.weight"] * part.weight
                found.append(own)
            before += part.groups
        _check_widths(name, found)
        layers[name] = {key: torch.cat([own[key] for own in found]) for key in found[0] if key != "layer"} | {
            "sigma.k": k,
            "layer": torch.tensor(number),
        }
    densities = [density for part in parts for density in _densities(part)]
    return _config(parts, layers, densities), layers


def add(parts: Sequence[Part]) -> tuple[AtomConfig, Layers]:
    """W_s and D summed entry by entry. Gains are multiplied into D, the larger k is taken, ids and layer numbers are
    those of the first.

    Raises `UserError` unless all have the same layers with the same atoms in the same heads.
    """
    first, layers = parts[0], {}
    for part in parts[1:]:
        if why := _not_alike(first, part):
            raise UserError(
                f"{first.name} and {part.name} cannot be combined entry by entry, because {why}: use cat instead."
            )
    for name, own in first.layers.items():
        same = [part.layers[name] for part in parts]
        encoder, decoder = torch.zeros_like(own["encoder.weight"]), torch.zeros_like(own["decoder.weight"])
        for part, tensors in zip(parts, same):
            root = math.sqrt(abs(part.weight))
            encoder += root * tensors["encoder.weight"]
            decoder += math.copysign(root, part.weight) * tensors["gain"][:, None] * tensors["decoder.weight"]
        layers[name] = own | {
            "encoder.weight": encoder,
            "decoder.weight": decoder,
            "gain": torch.ones_like(own["gain"]),
            "usage": torch.zeros_like(own["usage"]),  # not measured for sums of atoms
            "floor.levels": torch.full_like(own["floor.levels"], UNMEASURED),
            "floor.share": torch.zeros_like(own["floor.share"]),
            "sigma.k": torch.stack([tensors["sigma.k"] for tensors in same]).amax(0),
        }
    densities = [max(each) for each in zip(*map(_densities, parts))]
    return replace(_config(parts, layers, densities), floor=0.0), layers


def natural(name: str) -> list[tuple[int, str]]:
    """A sorting key that puts "blocks.2" before "blocks.10"."""
    return [(int(word), "") if word.isdigit() else (-1, word) for word in re.split(r"(\d+)", name)]


def _numbers(parts: Sequence[Part]) -> dict[str, int]:
    """The number of every layer: 17 for L17."""
    numbers: dict[str, int] = {}
    for part in parts:
        new = {name: int(part.layers[name]["layer"]) for name in part.layers.keys() - numbers.keys()}
        taken = set(numbers.values())
        numbers |= {name: own for name, own in new.items() if own not in taken}
        for name in sorted(new.keys() - numbers.keys(), key=natural):
            numbers[name] = max(numbers.values()) + 1
    return {name: numbers[name] for name in sorted(numbers, key=natural)}


def _densities(part: Part) -> list[float]:
    density = part.config.density
    return list(density) if isinstance(density, list) else [density] * part.groups


def _config(parts: Sequence[Part], layers: Layers, densities: list[float]) -> AtomConfig:
    """The configuration of the first, with the names of all layers and the size of each."""
    sizes = {name: len(tensors["id"]) for name, tensors in layers.items()}
    num_atoms = Counter(sizes.values()).most_common(1)[0][0]
    return replace(
        parts[0].config,
        target_modules=list(layers),
        exclude_modules=None,
        layers_to_transform=None,
        layers_pattern=None,
        num_atoms=num_atoms,
        num_atoms_pattern={f"^{re.escape(name)}": size for name, size in sizes.items() if size != num_atoms},
        density=densities if len(densities) > 1 else densities[0],
        k=None,  # of each layer and adapter it is saved with the atoms
    )


def _check_sigma(first: Part, other: Part) -> None:
    """Raise `UserError` if two adapters have different σ: a `SparseDictionary` has only one."""
    dials = ["activation", "mix_first", "unit_encoder", "threshold_units"]
    if first.config.sigma.kind.threshold_is_fixed:
        dials.append("threshold")
    for dial in dials:
        one, two = getattr(first.config, dial), getattr(other.config, dial)
        if one != two:
            raise UserError(
                f"{first.name} and {other.name} cannot become one adapter, because their {dial} differs ({one!r} and "
                f"{two!r}): load both and activate them together with "
                'model.base_model.set_adapter(["subject", "style"]).'
            )


def _check_widths(name: str, found: Sequence[dict[str, Tensor]]) -> None:
    widths = {(own["encoder.weight"].shape[1], own["decoder.weight"].shape[1]) for own in found}
    if len(widths) > 1:
        raise UserError(f"the adapters were made for different models: {name} has widths {sorted(widths)}.")


def _not_alike(first: Part, other: Part) -> str | None:
    """Why two adapters cannot be summed entry by entry, or None."""
    if first.layers.keys() != other.layers.keys():
        return f"{min(first.layers.keys() ^ other.layers.keys(), key=natural)} has atoms in only one of them"
    for name in first.layers:
        a, b = first.layers[name], other.layers[name]
        for key in ("encoder.weight", "decoder.weight", "sigma.k"):
            if a[key].shape != b[key].shape:
                return f"{name} has {key} of shape {list(a[key].shape)} in one and {list(b[key].shape)} in the other"
        if not (torch.equal(a["head"], b["head"]) and torch.equal(a["group"], b["group"])):
            return f"the atoms of {name} belong to other heads or groups in one than in the other"
    return None
