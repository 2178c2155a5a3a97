"""What an adapter folder says of itself, read without loading its weights.

adapter_config.json         PEFT's configuration
adapter_model.safetensors   the weights, and in their header what the adapter was trained for (`storage.metadata`)
README.md                   the card (`storage.cards`)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atomtune.bases import denoiser, fingerprint, is_hub_name, same_weights
from atomtune.errors import UserError
from atomtune.files import expanded
from atomtune.prompts import Subject, subject_prompts
from atomtune.storage import foreign
from atomtune.storage.cards import CARD
from atomtune.storage.metadata import CONFIG_FILE, WEIGHTS_FILE, WORDS, read_metadata

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

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
