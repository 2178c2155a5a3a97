"""Checkpoints: everything that a run needs to continue to the same bits, as safetensors and JSON, without pickle.

checkpoints/step-000100/
    adapter/            the weights, a PEFT folder that opens like any other
    state.safetensors   tensors of the optimizer, the schedule and the gradient scaler
    state.json          how they are nested, the step (which is also the position in the data), and the numbers so far
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from atomtune.files import atomic_folder, remove
from atomtune.storage.reading import ADAPTER_FILES

TENSOR = "__tensor__"
SEAL = "state.json"  # without it a checkpoint is not complete
FILES = (SEAL, "state.safetensors", *(f"adapter/{name}" for name in ADAPTER_FILES))


def save_checkpoint(
    folder: Path, step: int, state: dict[str, Any], write_adapter: Any, keep: int, spare: str | None = None
) -> Path:
    """Write `step`'s checkpoint, whole or not at all, then remove the files of all but the newest `keep` and `spare`.

    `state` is a tree of dicts, lists, numbers, strings and tensors; `write_adapter(path)` writes the weights.
    """
    target = checkpoint_folder(folder, step)
    with atomic_folder(target, SEAL) as temporary:
        write_adapter(temporary / "adapter")
        tensors: dict[str, torch.Tensor] = {}
        (temporary / "state.json").write_text(json.dumps(flatten({"step": step, **state}, tensors)), encoding="utf-8")
        save_file(tensors, temporary / "state.safetensors")
    remove_old(folder, keep, spare)
    return target


def remove_old(folder: Path, keep: int, spare: str | None = None) -> None:
    """Remove the files of all checkpoints but the newest `keep` and the one named `spare`."""
    kept = checkpoints(folder)[-keep:]
    for old in _steps(folder):
        if old not in kept and old.name != spare:
            remove([old / name for name in FILES], [old, old / "adapter"])


def checkpoint_folder(folder: Path, step: int) -> Path:
    """The folder of `step`'s checkpoint."""
    return folder / f"step-{step:06d}"


def step_of(checkpoint: Path) -> int:
    """Number of optimizer steps before a checkpoint."""
    return int(checkpoint.name.removeprefix("step-"))


def checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints in `folder`, oldest first."""
    return [step for step in _steps(folder) if (step / SEAL).is_file()]


def _steps(folder: Path) -> list[Path]:
    return sorted((path for path in folder.glob("step-*") if re.fullmatch(r"step-\d{6,}", path.name)), key=step_of)


def newest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint to continue from, if there is one."""
    return next(reversed(checkpoints(folder)), None)


def load_state(checkpoint: Path) -> dict[str, Any]:
    """The tree that `save_checkpoint` was given, with its `step`."""
    with safe_open(checkpoint / "state.safetensors", framework="pt") as tensors:
        return restore(json.loads((checkpoint / "state.json").read_text(encoding="utf-8")), tensors)


def flatten(tree: Any, tensors: dict[str, torch.Tensor], name: str = "state") -> Any:
    """The tree with its tensors moved to `tensors`, and Python dicts as lists of pairs (keys may be numbers)."""
    if isinstance(tree, torch.Tensor):
        tensors[name] = tree.detach().cpu().clone().contiguous()
        return {TENSOR: name}
    if isinstance(tree, dict):
        return {"pairs": [[key, flatten(value, tensors, f"{name}.{key}")] for key, value in tree.items()]}
    if isinstance(tree, list | tuple):
        return [flatten(value, tensors, f"{name}.{index}") for index, value in enumerate(tree)]
    return tree


def restore(tree: Any, tensors: Any) -> Any:
    """The inverse of `flatten` (tuples come back as lists)."""
    if isinstance(tree, list):
        return [restore(value, tensors) for value in tree]
    if isinstance(tree, dict):
        return (
            tensors.get_tensor(tree[TENSOR])
            if TENSOR in tree
            else {key: restore(value, tensors) for key, value in tree["pairs"]}
        )
    return tree
