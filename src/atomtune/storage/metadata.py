"""Metadata of an adapter that PEFT's configuration does not have, in the header of the weights.

    token, class_name     the words it was trained with
    backgrounds           colours of backgrounds that its subject does not share, the clearest first (moji alone)
    subjects              of an adapter of several subjects instead of these: a list of them, for each
    license               as the Hugging Face hub spells it
    base_fingerprint      some of the base's weights, by which the base is recognised (`bases.fingerprint`)
    merged_from, combination_type     of a merged adapter: its parts, and how they were merged

The header can be read without the weights. PEFT ignores it, while it warns about unknown keys in `adapter_config.json`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atomtune.bases import base_hash
from atomtune.parsing import parse_json

if TYPE_CHECKING:
    from torch import Tensor

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
WORDS = ("token", "class_name", "backgrounds")
"""What is known of one subject."""
TEXTS = ("token", "class_name", "license", "combination_type")
LISTS = ("base_fingerprint", "backgrounds", "subjects", "merged_from")  # as JSON: a header holds text alone


def read_metadata(header: dict[str, str], config: dict[str, Any]) -> dict[str, Any]:
    """atomtune's metadata of an adapter, from the header of its weights and its configuration, without unknown values.

    Adapters of earlier versions have them in the config, under PEFT's `auto_mapping`. Raises `ValueError` for values of
    another kind.
    """
    if header.get("library") != "atomtune":
        header = {}
    earlier = config.get("auto_mapping")
    earlier = earlier if isinstance(earlier, dict) else {}
    found = {key: earlier.get(key) for key in (*TEXTS, *LISTS)} | {key: header[key] for key in TEXTS if key in header}
    found |= {key: parse_json(header[key]) for key in LISTS if key in header}
    found = {key: value for key, value in found.items() if value is not None}
    for key, value in found.items():
        if not _is_of_its_kind(key, value):
            raise ValueError(f"{key} is {value!r:.100}")
    return found


def _is_of_its_kind(key: str, value: Any) -> bool:
    if key in TEXTS:
        return isinstance(value, str)
    inner = {"base_fingerprint": int | float, "backgrounds": str}.get(key, dict)
    if not isinstance(value, list) or not all(isinstance(each, inner) for each in value):
        return False
    return inner is not dict or all(
        _is_of_its_kind(name, each[name]) for each in value for name in (*TEXTS, *LISTS) if each.get(name)
    )


def atoms_in(folder: Path) -> list[int]:
    """How many atoms each layer of the adapter in `folder` has, read without the weights."""
    from safetensors import safe_open

    with safe_open(folder / WEIGHTS_FILE, "pt") as file:
        names = [key for key in file.keys() if key.endswith(".atoms_id")]  # noqa: SIM118  it is no dict
        return [file.get_slice(key).get_shape()[0] for key in names]


def write_weights(folder: Path, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    """Write the tensors of the adapter whose `adapter_config.json` is in `folder`, with `metadata` in the header.

    The entries of the header are in a fixed order, so that equal adapters are equal files; safetensors has no order.
    """
    from safetensors.torch import save

    config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    raw = save(tensors)
    length = int.from_bytes(raw[:8], "little")
    head = {"__metadata__": _header(config, tensors, metadata)} | json.loads(raw[8 : 8 + length])
    text = json.dumps(head, separators=(",", ":")).encode()
    text = text.ljust(-(-len(text) // 8) * 8)
    (folder / WEIGHTS_FILE).write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])


def _header(config: dict[str, Any], tensors: dict[str, Tensor], metadata: dict[str, Any]) -> dict[str, str]:
    """What a hub or a person can read without loading the weights.

    `base_model` and `base_hash`; `metadata`; of atoms also their number `num_atoms`, over all layers, `density` and
    `activation`. Unknown values are left out.
    """
    known = {"peft_type": config.get("peft_type"), "base_model": config.get("base_model_name_or_path")}
    known |= {key: metadata.get(key) for key in TEXTS}
    known |= {key: json.dumps(metadata[key]) for key in LISTS if metadata.get(key) is not None}
    if (values := metadata.get("base_fingerprint")) is not None:
        known["base_hash"] = base_hash(values)
    if config.get("peft_type") == "ATOMS":
        known["num_atoms"] = sum(len(tensor) for key, tensor in tensors.items() if key.endswith(".atoms_id"))
        known |= {"density": json.dumps(config["density"]), "activation": config["activation"]}
    return {"format": "pt", "library": "atomtune"} | {
        key: str(value) for key, value in known.items() if value is not None
    }
