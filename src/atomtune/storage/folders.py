"""Adapter folders: open one and put it on a base, or write one.

adapter_config.json         PEFT's configuration
adapter_model.safetensors   the weights, and in their header what the adapter was trained for (`storage.metadata`)
README.md                   the card (`storage.cards`)
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file

from atomtune.bases import denoiser, fingerprint, is_hub_name, same_weights, set_denoiser
from atomtune.errors import UserError
from atomtune.files import atomic_folder, expanded
from atomtune.prompts import Subject, subject_prompts
from atomtune.storage import foreign
from atomtune.storage.cards import CARD, adapter_card, write_card
from atomtune.storage.metadata import CONFIG_FILE, WEIGHTS_FILE, WORDS, read_metadata, write_weights

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from peft import PeftModel
    from torch import Tensor

ADAPTER_FILES = (CONFIG_FILE, WEIGHTS_FILE, CARD)
"""All that an adapter folder holds."""


def adapter_folder(path: str | Path) -> Path:
    """The PEFT folder at `path`: the folder itself, a run that holds it as `adapter/`, or a repository of the hub, of
    which a copy is kept in the hub's cache."""
    path = expanded(path)
    for folder in (path, path / "adapter"):
        if (folder / CONFIG_FILE).is_file():
            return folder
    expected = "expected a folder with adapter_config.json, a finished run of `atomtune customize`, or a hub name."
    if not is_hub_name(str(path)):
        raise UserError(f"there is no adapter in {str(path)!r}: {expected}")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        folder = Path(snapshot_download(str(path), allow_patterns=["adapter_*", CARD]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"the adapter {str(path)!r} could not be fetched ({reason:.200}): {expected}") from error
    if not (folder / CONFIG_FILE).is_file():
        raise UserError(f"the hub's {str(path)!r} holds no adapter_config.json: {expected}")
    return folder


@dataclass(frozen=True)
class AdapterInfo:
    """The configuration and metadata of an adapter folder, read without loading the weights."""

    path: str
    """The path as given: a folder, a run, or a hub name."""
    folder: Path
    """The PEFT folder."""
    config: dict[str, Any]
    """PEFT's own fields: `adapter_config.json`."""
    metadata: dict[str, Any]
    """atomtune's own fields, see `storage.metadata`."""

    @property
    def kind(self) -> str:
        """PEFT's name of the method: "ATOMS", "LORA", ..."""
        return self.config["peft_type"]

    @property
    def base(self) -> str:
        """The base that it was trained on. Raises `UserError` if it is not known."""
        if name := self.config.get("base_model_name_or_path"):
            return name
        raise UserError(f"the adapter {self.path!r} does not name the base that it was trained on: give --base.")

    @property
    def trained_for(self) -> dict[str, Any]:
        """`token`, `class_name`, `backgrounds`, `subjects` and `license`, as far as they are known, as `save_adapter`
        takes them."""
        names = (*WORDS, "subjects", "license")
        return {key: self.metadata[key] for key in names if key in self.metadata}

    @property
    def parts(self) -> list[dict[str, Any]]:
        """What is known of each thing that it learnt (see `WORDS`): of several subjects, and of the parts of a merged
        adapter."""
        return _parts(self.metadata)

    @property
    def subjects(self) -> list[Subject]:
        """All subjects whose words are known."""
        return [
            Subject(part["token"], part["class_name"], tuple(part.get("backgrounds") or ()))
            for part in self.parts
            if part.get("token") and part.get("class_name")
        ]

    def prompts(self, num: int = 1) -> list[str]:
        """Up to `num` prompts that show what it learnt (see `subject_prompts`), for each of its subjects. None if the
        adapter does not name the words that it was trained with."""
        return [prompt for subject in self.subjects for prompt in self.prompts_of(subject, num)]

    def prompts_of(self, subject: Subject, num: int) -> list[str]:
        """Up to `num` prompts that show one of its subjects."""
        base = self.config.get("base_model_name_or_path") or ""
        return subject_prompts(base, str(subject), subject.backgrounds, num)

    def peft_config(self) -> Any:
        """The configuration as PEFT's object. Raises `UserError` if PEFT cannot make one."""
        from peft import PeftConfig
        from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

        # The class of its method, which knows what its earlier versions saved.
        kind: Any = PEFT_TYPE_TO_CONFIG_MAPPING.get(self.kind, PeftConfig)  # pyright: ignore[reportArgumentType, reportCallIssue]
        try:
            return kind.from_pretrained(str(self.folder))
        except UserError:
            raise
        except Exception as error:  # of many kinds, for an option of another type than PEFT expects
            raise self.misfit(error) from error

    def misfit(self, error: Exception) -> UserError:
        """The error for a configuration that PEFT cannot use."""
        reason = f"{type(error).__name__}: {' '.join(str(error).split()):.200}"
        return UserError(
            f"the adapter {self.path!r} cannot be opened, because its {CONFIG_FILE} does not fit ({reason}): save the "
            "adapter again."
        )

    def refuse_other_than(self, kind: str, why: str) -> None:
        """Raise `UserError` unless the adapter was made by this method."""
        if self.kind != kind:
            raise UserError(f"the adapter {self.path!r} is of the method {self.kind}: {why}.")


def _parts(metadata: dict[str, Any]) -> list[dict[str, Any]]:
    inner = metadata.get("merged_from") or metadata.get("subjects")
    return [part for each in inner for part in _parts(each)] if inner else [metadata]


def words_of(subjects: Sequence[Subject]) -> dict[str, Any]:
    """The words of what an adapter learnt, as `save_adapter` takes them."""
    each = [
        {"token": subject.token, "class_name": subject.class_name, "backgrounds": list(subject.backgrounds)}
        for subject in subjects
    ]
    return each[0] if len(each) == 1 else {"subjects": each}


def adapter_info(path: str | Path) -> AdapterInfo:
    """Configuration and metadata of the adapter at `path` (see `adapter_folder`). Raises `UserError` if there is no
    adapter, or if its configuration or weights cannot be read."""
    from peft import PeftType
    from safetensors import SafetensorError, safe_open

    import atomtune.adapters  # noqa: F401  registers the atoms with PEFT

    folder = adapter_folder(path)
    file = folder / CONFIG_FILE
    config = foreign.read_config(file)
    method = config.get("peft_type")
    if method not in [kind.value for kind in PeftType]:
        raise UserError(f"{file} names no method that PEFT knows (peft_type {method!r:.100}): save the adapter again.")
    if method in foreign.OTHER_METHODS:
        raise UserError(f"{file} is of PEFT's method {method}, which does not adapt the layers of an image model.")
    try:
        shapes, header = foreign.read_header(folder / WEIGHTS_FILE)
        foreign.refuse_other_sizes(folder, config, shapes)
        with safe_open(folder / WEIGHTS_FILE, "pt"):  # which compares the header with the length of the file
            return AdapterInfo(str(path), folder, config, read_metadata(header, config))
    except UserError:
        raise
    except (OSError, ValueError, SafetensorError) as error:
        if not (folder / WEIGHTS_FILE).is_file():
            pickled = " and adapter_model.bin is a pickle, which may run any code when it is read"
            more = pickled if (folder / "adapter_model.bin").is_file() else ""
            raise unreadable(folder, f"there is no {WEIGHTS_FILE}{more}") from error
        raise unreadable(folder, error) from error


def unreadable(folder: Path, reason: object) -> UserError:
    """The error for weights that cannot be read."""
    return UserError(f"the weights in {str(folder)!r} cannot be read ({reason}): save the adapter again.")


def refuse_different_bases(adapters: Sequence[AdapterInfo]) -> None:
    """Raise `UserError` if two adapters were trained on bases with different weights, as far as known."""
    for first, other in pairwise(adapters):
        one, two = (each.metadata.get("base_fingerprint") for each in (first, other))
        if one and two and not same_weights(one, two):
            names = [each.config.get("base_model_name_or_path") for each in (first, other)]
            raise UserError(
                f"{first.path} and {other.path} were trained on different bases ({names[0]} and {names[1]}, whose "
                "weights differ): train them on one base."
            )


def refuse_other_base(pipe: DiffusionPipeline, info: AdapterInfo, weights: list[float] | None = None) -> str:
    """Raise `UserError` if the adapter is known to come from another base; else return the sentence of that error.
    `weights` is the base's fingerprint, by default that of the denoiser."""
    wanted, given = info.config.get("base_model_name_or_path"), pipe.name_or_path or type(pipe).__name__
    if wanted == given:
        given = "the weights it has now"
    refusal = f"the adapter {info.path!r} was trained on the base {wanted!r}, not on {given!r}: open it with that base."
    expected = info.metadata.get("base_fingerprint")
    if expected is not None and not same_weights(expected, weights or fingerprint(denoiser(pipe))):
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
