"""`merge`: several adapter folders into one, without opening the base model.

    cat      ΔO = w₁ΔO₁ + w₂ΔO₂ exactly: the union of the atoms, each adapter with its own k
    linear   W_s and D summed entry by entry, as the paper's supplement C.3 does; needs equal shapes

For adapters that are loaded in a model, PEFT's own call does the same:
`model.add_weighted_adapter(["subject", "style"], [1, 0.7], "both", combination_type="cat")`.
The arithmetic, and what addresses look like afterwards, is in `adapters.combining`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from atomtune.adapters import AtomConfig, AtomModel
from atomtune.adapters.combining import Layers, Part, combine, first_ids
from atomtune.adapters.formats import current
from atomtune.errors import UserError
from atomtune.files import atomic_folder, expanded, refuse_output
from atomtune.storage.cards import adapter_card, write_card
from atomtune.storage.metadata import CONFIG_FILE, WEIGHTS_FILE, WORDS, write_weights
from atomtune.storage.reading import AdapterInfo, adapter_folder, adapter_info, refuse_different_bases, unreadable

PEFT_KEYS = ("base_model_class", "parent_library")
"""PEFT's own fields in `auto_mapping`, in which earlier versions also stored atomtune's metadata."""
_INSIDE = f".{AtomModel.prefix}"  # between a layer's name and its tensor's, on disk


def merge(
    adapters: Sequence[str | Path],
    out: str | Path,
    combination_type: str = "cat",
    weights: Sequence[float | int] | None = None,
) -> Path:
    """Write the adapters in these folders (or finished runs) as one adapter folder `out`; return `out`.

        atomtune.merge(["runs/teapot", "runs/openmoji"], "runs/both", weights=[1, 0.7])

    `combination_type` is "cat" or "linear"; `weights` are 1 by default. The header of the merged weights lists
    the adapters (`merged_from`): name, weight, and `first_id`, the number that was added to the ids of its atoms.
    Raises `UserError`, and writes nothing, if the adapters do not fit, if `out` contains one of them, or if `out` holds
    an adapter that was not made by `merge`. Other files in `out` stay.
    """
    out, adapters = expanded(out), [expanded(path) for path in adapters]
    refuse_output(out, *map(adapter_folder, adapters))
    there = [(out / name).exists() for name in (CONFIG_FILE, WEIGHTS_FILE)]
    if any(there) and not (all(there) and parts_of(out)):
        raise UserError(f"{out} holds an adapter that was not made by merge, or a part of one: choose another folder.")
    return merged(adapters, combination_type, weights).save(out)


@dataclass(frozen=True)
class Merged:
    """Several adapters in one, not yet on disk."""

    config: AtomConfig
    tensors: dict[str, Tensor]
    metadata: dict[str, Any]

    @property
    def parts(self) -> list[dict[str, Any]]:
        """See `parts_of`."""
        return self.metadata["merged_from"]

    @property
    def atoms_by_layer(self) -> list[int]:
        return [len(ids) for name, ids in self.tensors.items() if name.endswith(".atoms_id")]

    def save(self, out: Path) -> Path:
        """Write the adapter folder `out`, whole or not at all; return it."""
        with atomic_folder(out, seal=CONFIG_FILE) as temporary:
            text = _text(self.parts, self.metadata["combination_type"])
            card = adapter_card(str(self.config.base_model_name_or_path), "atoms", "Several adapters in one", text)
            write_card(temporary, out, card)
            theirs = {key: value for key, value in (self.config.auto_mapping or {}).items() if key in PEFT_KEYS}
            replace(self.config, auto_mapping=theirs or None).save_pretrained(str(temporary))
            write_weights(temporary, self.tensors, self.metadata)
        return out


def merged(
    adapters: Sequence[str | Path], combination_type: str = "cat", weights: Sequence[float | int] | None = None
) -> Merged:
    """What `merge` writes. Raises `UserError`, if the adapters do not fit."""
    weights = [1.0] * len(adapters) if weights is None else list(map(float, weights))
    if len(weights) != len(adapters):
        raise UserError(f"there must be one weight for each adapter, got {len(weights)} for {len(adapters)}.")
    infos = [adapter_info(path) for path in adapters]
    parts = [_read(info, weight) for info, weight in zip(infos, weights)]
    refuse_different_bases(infos)
    config, layers = combine(parts, combination_type)
    moved = first_ids(parts) if combination_type == "cat" else [0] * len(parts)
    sources = [_source(info, weight, first) for info, weight, first in zip(infos, weights, moved)]
    metadata = infos[0].metadata | {"merged_from": sources, "combination_type": combination_type}
    if any(info.metadata.get("license") != metadata.get("license") for info in infos):
        metadata.pop("license", None)  # there is no one license for all
    tensors = {
        f"base_model.model.{name}{_INSIDE}{key}": tensor.contiguous()
        for name, own in layers.items()
        for key, tensor in own.items()
    }
    return Merged(config, tensors, metadata)


def parts_of(path: str | Path) -> list[dict[str, Any]]:
    """The parts of a merged adapter (`merged_from`); an empty list for any other adapter."""
    return adapter_info(path).metadata.get("merged_from", [])


def _read(info: AdapterInfo, weight: float) -> Part:
    info.refuse_other_than("ATOMS", "merge it with PEFT's own add_weighted_adapter")
    config = info.peft_config()
    layers: Layers = {}
    try:
        for name, tensor in current(load_file(info.folder / WEIGHTS_FILE)).items():
            layer, inside, key = name.removeprefix("base_model.model.").rpartition(_INSIDE)
            if inside:  # else a module trained in full, which `combine` refuses
                layers.setdefault(layer, {})[key] = tensor
    except (OSError, SafetensorError) as error:
        raise unreadable(info.folder, error) from error
    return Part(info.path, config, layers, weight)


def _source(info: AdapterInfo, weight: float, first_id: int) -> dict[str, Any]:
    names = (*WORDS, "subjects", "merged_from")
    known = {key: value for key, value in info.metadata.items() if key in names}
    return {"adapter": info.path, "weight": weight, "first_id": first_id} | known


def _text(sources: list[dict[str, Any]], combination_type: str) -> str:
    """The text of the card."""
    rows = "\n".join(f"| `{source['adapter']}` | {source['weight']:g} | {source['first_id']} |" for source in sources)
    return f"""\
Made by `atomtune merge --combination-type {combination_type}`.

| adapter | weight | its atoms' ids start at |
|---|---|---|
{rows}
"""
