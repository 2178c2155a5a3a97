"""Put the adapter of a folder on a base, or write one."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file

from atomtune.bases import denoiser, fingerprint, set_denoiser
from atomtune.errors import UserError
from atomtune.files import atomic_folder, expanded
from atomtune.storage import foreign
from atomtune.storage.cards import adapter_card, write_card
from atomtune.storage.metadata import CONFIG_FILE, WEIGHTS_FILE, write_weights
from atomtune.storage.reading import AdapterInfo, adapter_info, refuse_other_base, unreadable

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from peft import PeftModel
    from torch import Tensor


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
    compiled model is not compiled again: their shapes and options must be the same. Dials that the board changed are
    reset.

    Beside an adapter that is there already, also one of another method (a LoRA beside atoms), it is loaded and not yet
    active: `model.base_model.set_adapter(["default", adapter_name])` makes both act.

    Raises `UserError` if the adapter was trained on another base, cannot be swapped in, or if an adapter of another
    method has the name.
    """
    from peft import PeftModel
    from safetensors import SafetensorError

    from atomtune.adapters.guard import guard_quantized
    from atomtune.adapters.model import refuse_taken_name

    info = adapter_info(path)
    folder, model = info.folder, denoiser(pipe)
    refusal = refuse_other_base(pipe, info)
    foreign.refuse_bad_numbers(folder / WEIGHTS_FILE)
    if hotswap:
        _hotswap(model, info, adapter_name)
        return model
    refuse_taken_name(model, adapter_name, info.kind)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "Found missing adapter keys", UserWarning)
            if isinstance(model, PeftModel) and model.peft_type == info.kind:
                model.load_adapter(str(folder), adapter_name, is_trainable=trainable)
            elif isinstance(model, PeftModel):  # PEFT's `load_adapter` refuses another method
                warnings.filterwarnings("ignore", "Already found a `peft_config` attribute", UserWarning)
                active, base = model.active_adapters, model.get_base_model()
                loaded = PeftModel.from_pretrained(base, str(folder), adapter_name, is_trainable=trainable)
                model = beside(model, loaded, active)
            else:
                model = PeftModel.from_pretrained(model, str(folder), adapter_name, is_trainable=trainable)
    except (UserError, MemoryError):
        raise
    except (RuntimeError, ValueError, UserWarning) as error:  # shapes, modules and weights that do not fit
        raise UserError(refusal) from error
    except SafetensorError as error:
        raise unreadable(folder, error) from error
    except Exception as error:  # PEFT fails in many ways on options that it does not expect
        raise info.misfit(error) from error
    guard_quantized(model)
    set_denoiser(pipe, model)
    return model


def beside(model: PeftModel, other: PeftModel, active: Sequence[str]) -> PeftModel:
    """One of two wrappers around the same network, each of one method: that of the atoms, if there are any, because it
    switches, unloads and saves the adapters of both. Only the `active` ones act, and they train if they did."""
    from peft.functional import set_adapter

    chosen = other if other.peft_type == "ATOMS" else model
    frozen = all(model.peft_config[name].inference_mode for name in active)
    chosen.base_model.set_adapter(list(active), frozen)  # pyright: ignore[reportCallIssue]
    set_adapter(chosen.get_base_model(), list(active), frozen)
    return chosen


_SHAPES = ("peft_type", "activation", "mix_first", "threshold", "threshold_units", "unit_encoder")
"""Fields of a configuration that are compiled into the model, as are the shapes of the tensors."""


def _hotswap(model: torch.nn.Module, info: AdapterInfo, adapter_name: str) -> None:
    from peft import PeftModel, get_peft_model_state_dict

    from atomtune.adapters import adapted_layers
    from atomtune.adapters.formats import current
    from atomtune.steering import board

    folder = info.folder
    if not isinstance(model, PeftModel) or adapter_name not in model.peft_config:
        raise UserError(f"there is no adapter {adapter_name!r} to swap: load the first one without hotswap.")
    config = info.peft_config()
    tensors = current(load_file(folder / WEIGHTS_FILE))
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
    if layers := adapted_layers(model, adapter_name):
        board(model, adapter_name).schedule = {}
        for layer in layers:
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
    backgrounds: Sequence[str] | None = None,
    subjects: Sequence[dict[str, Any]] | None = None,
    license: str | None = None,
    card: str | None = None,
) -> Path:
    """Write one adapter as a PEFT folder, whole or not at all, and return the folder.

    In an existing folder `ADAPTER_FILES` are replaced and all other files stay. A README.md also stays if atomtune did
    not write it, or if it was changed since.

    `model` is the adapted denoiser or the pipeline that has it; `base` is the pipeline's own name unless it is given.
    The header of the weights holds `token`, `class_name`, `backgrounds` and `license`, or of several subjects the first
    three of each (see `storage.metadata`); `card` is the README, by default one about how to open the adapter.
    """
    from peft import PeftModel

    if not isinstance(model, torch.nn.Module):
        base = base or model.name_or_path
        model = denoiser(model)
    if not isinstance(model, PeftModel):
        raise UserError(
            f"{type(model).__name__} carries no adapter: put one on it with get_peft_model or load_adapter."
        )
    from atomtune.adapters import AtomConfig, adapted_layers

    if adapted_layers(model, adapter_name) and not isinstance(model.peft_config.get(adapter_name), AtomConfig):
        raise UserError(
            f"there are atoms and an adapter of another method under the one name {adapter_name!r}, and PEFT saves one "
            "of them: give them different names."
        )
    base, folder = os.path.expanduser(base or ""), expanded(folder)
    if not base:
        raise UserError("give the base's name with base=, so that the adapter can be opened again.")
    with atomic_folder(folder, seal=CONFIG_FILE) as temporary:
        # "auto" would ask the hub whether the base has a vocabulary.
        model.save_pretrained(str(temporary), selected_adapters=[adapter_name], save_embedding_layers=False)
        if adapter_name != "default":  # PEFT puts every other name in a folder of its own
            for file in (temporary / adapter_name).iterdir():
                file.rename(temporary / file.name)
            (temporary / adapter_name).rmdir()
        config = json.loads((temporary / CONFIG_FILE).read_text(encoding="utf-8"))
        if card is None:
            card = adapter_card(base, config["peft_type"].lower(), token or "An adapter", "", license=license)
        config["base_model_name_or_path"] = str(Path(base).resolve()) if Path(base).is_dir() else base
        metadata = {
            "base_fingerprint": fingerprint(model),
            "token": token,
            "class_name": class_name,
            "backgrounds": list(backgrounds) if backgrounds else None,
            "subjects": subjects,
            "license": license,
        }
        write_card(temporary, folder, card)
        if isinstance(config["target_modules"], list):
            config["target_modules"].sort()
        (temporary / CONFIG_FILE).write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")
        write_weights(temporary, load_file(temporary / WEIGHTS_FILE), metadata)
    return folder
