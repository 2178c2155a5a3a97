"""`merge`: several adapter folders into one, without opening the base model.

    concatenate   ΔO = w₁ΔO₁ + w₂ΔO₂ exactly: the union of the atoms, each adapter with its own k
    add           W_s and D summed entry by entry, as the paper's supplement C.3 does; needs equal shapes

For adapters that are loaded in a model, PEFT's own call does the same:
`model.add_weighted_adapter(["subject", "style"], [1, 0.7], "both", combination_type="cat")` ("linear" for add).
The arithmetic, and what addresses look like afterwards, is in `adapters.combining`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file

from atomtune.adapters import AtomConfig, AtomModel
from atomtune.adapters.combining import Layers, Part, combine, first_ids
from atomtune.adapters.formats import current
from atomtune.bases import same_weights
from atomtune.errors import UserError
from atomtune.files import atomic_folder, expanded, refuse_output
from atomtune.storage.cards import adapter_card, write_card
from atomtune.storage.folders import CONFIG, WEIGHTS, adapter_folder, adapter_info, write_weights

COMBINATION_TYPES = {"concatenate": "cat", "add": "linear"}
_INSIDE = f".{AtomModel.prefix}"  # between a layer's name and its tensor's, on disk


def merge(
    adapters: Sequence[str | Path],
    out: str | Path,
    mode: str = "concatenate",
    weights: Sequence[float | int] | None = None,
) -> Path:
    """Write the adapters in these folders (or finished runs) as one adapter folder `out`; return `out`.

        atomtune.merge(["runs/teapot", "runs/openmoji"], "runs/both", weights=[1, 0.7])

    `mode` is "concatenate" or "add"; `weights` are 1 by default. `adapter_config.json` says under `auto_mapping` which
    adapters went in (`merged_from`): name, weight, and `first_id`, by which the ids of its atoms moved. Nothing is
    written when they do not fit, when `out` contains one of them or when it holds an adapter that was not made by
    `merge`, and the `UserError` says why. Other files in `out` stay.
    """
    weights = [1.0] * len(adapters) if weights is None else list(map(float, weights))
    if mode not in COMBINATION_TYPES:
        raise UserError(f"mode must be concatenate or add, got {mode!r}.")
    if len(weights) != len(adapters):
        raise UserError(f"there must be one weight for each adapter, got {len(weights)} for {len(adapters)}.")
    out, adapters = expanded(out), [expanded(path) for path in adapters]
    refuse_output(out, *map(adapter_folder, adapters))
    if any((out / name).exists() for name in (CONFIG, WEIGHTS)) and not ((out / CONFIG).exists() and parts_of(out)):
        raise UserError(f"{out} holds an adapter that was not made by merge, or a part of one: choose another folder.")
    parts = [_read(path, weight) for path, weight in zip(adapters, weights)]
    _same_base(adapters)
    config, layers = combine(parts, COMBINATION_TYPES[mode])
    moved = first_ids(parts) if mode == "concatenate" else [0] * len(parts)
    sources = [_source(path, weight, first) for path, weight, first in zip(adapters, weights, moved)]
    mapping: dict[str, Any] = dict(config.auto_mapping or {}) | {"merged_from": sources, "merged_by": mode}
    tensors = {
        f"base_model.model.{name}{_INSIDE}{key}": tensor.contiguous()
        for name, own in layers.items()
        for key, tensor in own.items()
    }
    with atomic_folder(out, seal=CONFIG) as temporary:
        card = adapter_card(
            str(config.base_model_name_or_path), "atoms", "Several adapters in one", _text(sources, mode)
        )
        mapping["card"] = write_card(temporary, Path(out), card)
        replace(config, auto_mapping=mapping).save_pretrained(str(temporary))
        write_weights(temporary, tensors)
    return out


def parts_of(path: str | Path) -> list[dict[str, Any]]:
    """What a merged adapter was made of (`merged_from`); of any other adapter, an empty list."""
    return (adapter_info(path).get("auto_mapping") or {}).get("merged_from", [])


def _read(path: Path, weight: float) -> Part:
    folder = adapter_folder(path)
    kind = adapter_info(folder).get("peft_type")
    if kind != "ATOMS":
        raise UserError(f"{path} holds a {kind} adapter, not atoms: merge it with PEFT's own add_weighted_adapter.")
    config: Any = AtomConfig.from_pretrained(str(folder))
    layers: Layers = {}
    try:
        for name, tensor in current(load_file(folder / WEIGHTS)).items():
            layer, inside, key = name.removeprefix("base_model.model.").rpartition(_INSIDE)
            if inside:  # else a module trained in full, which `combine` refuses
                layers.setdefault(layer, {})[key] = tensor
    except (OSError, SafetensorError) as error:
        raise UserError(f"the weights in {str(folder)!r} cannot be read ({error}): save the adapter again.") from error
    return Part(str(path), config, layers, weight)


def _same_base(adapters: Sequence[str | Path]) -> None:
    infos = [adapter_info(path) for path in adapters]
    for path, info in zip(adapters[1:], infos[1:]):
        prints = [(each.get("auto_mapping") or {}).get("base_fingerprint") for each in (infos[0], info)]
        if all(prints) and not same_weights(*prints):  # pyright: ignore[reportArgumentType]
            bases = [each.get("base_model_name_or_path") for each in (infos[0], info)]
            raise UserError(
                f"{adapters[0]} and {path} were trained on different bases ({bases[0]} and {bases[1]}, whose weights "
                "differ): train them on one base."
            )


def _source(path: str | Path, weight: float, first_id: int) -> dict[str, Any]:
    mapping = adapter_info(path).get("auto_mapping") or {}
    known = {key: mapping[key] for key in ("token", "class_name", "merged_from") if mapping.get(key)}
    return {"adapter": str(path), "weight": weight, "first_id": first_id} | known


def _text(sources: list[dict[str, Any]], mode: str) -> str:
    """What the card says."""
    rows = "\n".join(f"| `{source['adapter']}` | {source['weight']:g} | {source['first_id']} |" for source in sources)
    return f"""\
Made by `atomtune merge --mode {mode}`.

| adapter | weight | its atoms' ids start at |
|---|---|---|
{rows}
"""
