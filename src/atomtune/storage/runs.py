"""Runs: the folder that a command writes when it makes an adapter, with the same names from every command.

adapter/             the adapter (`storage.reading`)
config.yaml          the settings. Of `customize`: all its options. Of another command: its name as `command`, its
                     options, and under `training` the settings that its adapter was trained with, if they are known
summary.json         the numbers
atomtune-files.txt   the list of what was written (`manifest`)
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from atomtune import manifest
from atomtune.errors import UserError
from atomtune.files import write_text
from atomtune.parsing import parse_yaml
from atomtune.storage.metadata import CONFIG_FILE, WEIGHTS_FILE
from atomtune.storage.reading import ADAPTER_FILES

CONFIG, SUMMARY = "config.yaml", "summary.json"
NAMES = (CONFIG, SUMMARY, *(f"adapter/{name}" for name in ADAPTER_FILES))


def write_run(
    out: Path,
    save: Callable[[Path], Any],
    command: str,
    options: dict[str, Any],
    numbers: dict[str, Any],
    training: dict[str, Any] | None = None,
) -> None:
    """Write what another command than `customize` made into `out`: `save(folder)` writes the adapter, `options` are
    those that the command was given, and `training` is what `training_of` says of the adapter it started from."""
    manifest.record(out, *(out / name for name in NAMES))
    save(out / "adapter")
    numbers = numbers | {"adapter_bytes": (out / "adapter" / WEIGHTS_FILE).stat().st_size}
    write_text(out / SUMMARY, json.dumps(numbers, indent=2))
    settings = {"command": command} | options | ({"training": training} if training else {})
    write_text(out / CONFIG, yaml.safe_dump(_plain(settings), sort_keys=False, allow_unicode=True))


def settings_of(path: Path) -> dict[str, Any]:
    """What the config.yaml of a run says, given the run or its adapter; nothing if there is none. Raises `UserError` if
    it cannot be read."""
    file = (path.parent if (path / CONFIG_FILE).is_file() else path) / CONFIG
    if not file.is_file():
        return {}
    try:
        settings = parse_yaml(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file} could not be read ({' '.join(str(error).split())}): mend or remove it.") from error
    return settings if isinstance(settings, dict) else {}


def training_of(path: Path) -> dict[str, Any] | None:
    """The settings of `customize` that the adapter of a run was trained with, whatever was made of it since; None if
    they are not known, or of a version without `images`."""
    settings = settings_of(path)
    training = settings.get("training") if "command" in settings else settings
    return training if isinstance(training, dict) and "images" in training else None


def refuse_taken(out: Path, unless_by: str = "") -> None:
    """Raise `UserError` if `out` holds a run or an adapter (but for a run that the command `unless_by` wrote), or if
    `write_run` would replace files that atomtune did not write."""
    may_replace = (out / CONFIG).is_file() and settings_of(out).get("command") == unless_by
    if not may_replace or (out / CONFIG_FILE).is_file():
        places = [folder + name for folder in ("", "adapter/") for name in (CONFIG_FILE, WEIGHTS_FILE)]
        if any((out / name).exists() for name in (CONFIG, f"pruned/{CONFIG}", *places)):
            raise UserError(f"{out} holds an adapter already: choose another folder.")
    manifest.refuse_foreign(out, *NAMES)


def _plain(value: Any) -> Any:
    """As YAML holds it: paths as text, lists for tuples."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
