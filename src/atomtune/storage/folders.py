"""Adapter folders: open one and put it on a base, or write one.

adapter_config.json         PEFT's configuration, and what the adapter was trained for
adapter_model.safetensors   the weights
README.md                   the card (`storage.cards`)
"""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save

from atomtune.bases import base_hash, denoiser, fingerprint, is_hub_name, same_weights, set_denoiser
from atomtune.errors import UserError
from atomtune.files import atomic_folder, expanded
from atomtune.storage.cards import adapter_card, write_card

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from peft import PeftModel
    from torch import Tensor

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
ADAPTER_FILES = (CONFIG, WEIGHTS, "README.md")
"""All that an adapter folder holds."""


def adapter_folder(path: str | Path) -> Path:
    """The PEFT folder at `path`: the folder itself, a run that holds it as `adapter/`, or a repository of the hub, of
    which a copy is kept in the hub's cache."""
    path = expanded(path)
    for folder in (path, path / "adapter"):
        if (folder / "adapter_config.json").is_file():
            return folder
    expected = "expected a folder with adapter_config.json, a finished run of `atomtune customize`, or a hub name."
    if not is_hub_name(str(path)):
        raise UserError(f"there is no adapter in {str(path)!r}: {expected}")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        folder = Path(snapshot_download(str(path), allow_patterns=["adapter_*", "README.md"]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"the adapter {str(path)!r} could not be fetched ({reason:.200}): {expected}") from error
    if not (folder / "adapter_config.json").is_file():
        raise UserError(f"the hub's {str(path)!r} holds no adapter_config.json: {expected}")
    return folder


def adapter_info(path: str | Path) -> dict[str, Any]:
    """What `adapter_config.json` says: PEFT's own fields, `base_model_name_or_path`, and under `auto_mapping` ours
    (`token`, `class_name`, `base_fingerprint`). Raises `UserError` if it, or the weights beside it, cannot be read."""
    from peft import PeftType
    from safetensors import SafetensorError, safe_open

    import atomtune.adapters  # noqa: F401  registers the atoms with PEFT

    folder = adapter_folder(path)
    file = folder / CONFIG
    try:
        info = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file} is not valid JSON ({error}): save the adapter again.") from error
    method = info.get("peft_type") if isinstance(info, dict) else None
    if method not in [kind.value for kind in PeftType]:
        raise UserError(f"{file} is of no method that PEFT knows (peft_type {method!r}): save the adapter again.")
    try:
        with safe_open(folder / WEIGHTS, "pt"):  # reads the header, which knows how long the file is
            return info
    except (OSError, SafetensorError) as error:
        reason = error
        if not (folder / WEIGHTS).is_file():
            reason = f"there is no {WEIGHTS}"
        raise UserError(f"the weights in {str(folder)!r} cannot be read ({reason}): save the adapter again.") from error


def refuse_other_base(pipe: DiffusionPipeline, path: str | Path) -> str:
    """Raise `UserError` if the adapter says that it was trained on another base; else return what would be said."""
    info = adapter_info(path)
    wanted, given = info.get("base_model_name_or_path"), pipe.name_or_path or type(pipe).__name__
    if wanted == given:
        given = "the weights it has now"
    refusal = f"the adapter {str(path)!r} was trained on the base {wanted!r}, not on {given!r}: open it with that base."
    expected = (info.get("auto_mapping") or {}).get("base_fingerprint")
    if expected is not None and not same_weights(expected, fingerprint(denoiser(pipe))):
        raise UserError(refusal)
    return refusal


def load_adapter(
    pipe: DiffusionPipeline,
    path: str | Path,
    adapter_name: str = "default",
    trainable: bool = False,
    hotswap: bool = False,
) -> PeftModel:
    """Attach the adapter at `path` (a folder, a run, or a repository of the hub) to the pipeline's denoiser and return
    the adapted denoiser.

    With `hotswap`, the weights of the adapter of that name, which is there already, are replaced in place, so that a
    compiled model is not compiled again: their shapes and dials must be the same. What the board had changed is reset.

    Raises `UserError` if it was trained on another base, naming both, or cannot be swapped in.
    """
    from peft import PeftModel
    from safetensors import SafetensorError

    import atomtune.adapters  # noqa: F401  registers the atoms with PEFT

    folder, model = adapter_folder(path), denoiser(pipe)
    refusal = refuse_other_base(pipe, folder)
    if hotswap:
        _hotswap(model, folder, adapter_name)
        return model
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "Found missing adapter keys", UserWarning)
            if isinstance(model, PeftModel):
                model.load_adapter(str(folder), adapter_name, is_trainable=trainable)
            else:
                model = PeftModel.from_pretrained(model, str(folder), adapter_name, is_trainable=trainable)
    except UserError:
        raise
    except (RuntimeError, ValueError, UserWarning) as error:  # shapes, modules and weights that do not fit
        raise UserError(refusal) from error
    except SafetensorError as error:
        raise UserError(f"the weights in {str(folder)!r} cannot be read ({error}): save the adapter again.") from error
    set_denoiser(pipe, model)
    return model


_SHAPES = ("peft_type", "activation", "mix_first", "threshold", "threshold_units", "unit_encoder")
"""Fields of a config that are compiled in, beside the tensors' shapes."""


def _hotswap(model: torch.nn.Module, folder: Path, adapter_name: str) -> None:
    from peft import PeftModel, get_peft_model_state_dict

    from atomtune.adapters import adapted_layers
    from atomtune.adapters.formats import current

    if not isinstance(model, PeftModel) or adapter_name not in model.peft_config:
        raise UserError(f"there is no adapter {adapter_name!r} to swap: load the first one without hotswap.")
    config, tensors = (
        type(model.peft_config[adapter_name]).from_pretrained(str(folder)),
        current(load_file(folder / WEIGHTS)),
    )
    instead = "load it under another name instead."
    for field in _SHAPES:
        old, new = getattr(model.peft_config[adapter_name], field, None), getattr(config, field, None)
        if old != new:
            raise UserError(f"{str(folder)!r} cannot be swapped in, its {field} is {new!r} and was {old!r}: {instead}")
    now = get_peft_model_state_dict(model, adapter_name=adapter_name, save_embedding_layers=False)
    differ = [key for key in sorted(now.keys() | tensors.keys()) if _shape(now, key) != _shape(tensors, key)]
    if differ:
        was, is_now = _shape(now, differ[0]), _shape(tensors, differ[0])
        raise UserError(f"{str(folder)!r} cannot be swapped in, {differ[0]} is {is_now} and was {was}: {instead}")
    model.load_adapter(str(folder), adapter_name)
    model.peft_config[adapter_name] = config
    for layer in adapted_layers(model, adapter_name):
        layer.dictionary(adapter_name).keep_only(None)


def _shape(tensors: dict[str, Tensor], key: str) -> list[int] | None:
    return list(tensors[key].shape) if key in tensors else None


def set_scale(model: torch.nn.Module, scale: float, adapter_name: str = "default") -> None:
    """Strength of an adapter of any of PEFT's methods that have one: 0 is the base, 1 the adapter as trained."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for layer in model.modules():
        if isinstance(layer, BaseTunerLayer):
            tuner: Any = layer
            tuner.set_scale(adapter_name, scale)


def save_adapter(
    model: PeftModel | DiffusionPipeline,
    folder: str | Path,
    *,
    base: str | None = None,
    adapter_name: str = "default",
    token: str | None = None,
    class_name: str | None = None,
    license: str | None = None,
    card: str | None = None,
) -> Path:
    """Write one adapter as a PEFT folder, whole or not at all, and return the folder.

    In a folder that is there `ADAPTER_FILES` are replaced and every other file stays, and so does a README.md that
    atomtune did not write or that was changed since.

    `model` is the adapted denoiser or the pipeline that has it; `base` is the pipeline's own name unless it is given.
    `adapter_config.json` names the base, the token and the class, and the header of the weights says the same (see
    `write_weights`); `card` is the README, by default one that says how to open the adapter.
    """
    from peft import PeftModel

    if not isinstance(model, torch.nn.Module):
        base = base or model.name_or_path
        model = denoiser(model)
    if not isinstance(model, PeftModel):
        raise UserError(
            f"{type(model).__name__} carries no adapter: put one on it with get_peft_model or load_adapter."
        )
    base, folder = os.path.expanduser(base or ""), expanded(folder)
    if not base:
        raise UserError("give the base's name with base=, so that the adapter can be opened again.")
    with atomic_folder(folder, seal=CONFIG) as temporary:
        # "auto" would ask the hub whether the base has a vocabulary.
        model.save_pretrained(str(temporary), selected_adapters=[adapter_name], save_embedding_layers=False)
        if adapter_name != "default":  # PEFT puts every other name in a folder of its own
            for file in (temporary / adapter_name).iterdir():
                file.rename(temporary / file.name)
            (temporary / adapter_name).rmdir()
        config = json.loads((temporary / "adapter_config.json").read_text(encoding="utf-8"))
        if card is None:
            card = adapter_card(base, config["peft_type"].lower(), token or "An adapter", "", license=license)
        config["base_model_name_or_path"] = str(Path(base).resolve()) if Path(base).is_dir() else base
        config["auto_mapping"] = (config["auto_mapping"] or {}) | {
            "base_fingerprint": fingerprint(model),
            "token": token,
            "class_name": class_name,
            "license": license,
            "card": write_card(temporary, Path(folder), card),
        }
        if isinstance(config["target_modules"], list):
            config["target_modules"].sort()
        (temporary / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")
        write_weights(temporary, load_file(temporary / WEIGHTS))
    return folder


def write_weights(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Write the tensors of the adapter whose `adapter_config.json` is in `folder`, with a header (see `_header`).

    In a fixed order: safetensors would write the header's entries in any, and no two files would be the same.
    """
    info = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    raw = save(tensors)
    length = int.from_bytes(raw[:8], "little")
    head = {"__metadata__": _header(info, tensors)} | json.loads(raw[8 : 8 + length])
    text = json.dumps(head, separators=(",", ":")).encode()
    text = text.ljust(-(-len(text) // 8) * 8)
    (folder / WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])


def _header(info: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, str]:
    """What a hub or a person can tell without loading the weights.

    `base_model` and `base_hash`, `token`, `class_name`, `license`; of atoms
    also their number `num_atoms`, over all layers, `density` and `activation`. What is not known is left out.
    """
    mapping = info.get("auto_mapping") or {}
    known = {"peft_type": info.get("peft_type"), "base_model": info.get("base_model_name_or_path")}
    known |= {key: mapping.get(key) for key in ("token", "class_name", "license")}
    if (values := mapping.get("base_fingerprint")) is not None:
        known["base_hash"] = base_hash(values)
    if info.get("peft_type") == "ATOMS":
        known["num_atoms"] = sum(len(tensor) for key, tensor in tensors.items() if key.endswith(".atoms_id"))
        known |= {"density": json.dumps(info["density"]), "activation": info["activation"]}
    return {"format": "pt", "library": "atomtune"} | {
        key: str(value) for key, value in known.items() if value is not None
    }
