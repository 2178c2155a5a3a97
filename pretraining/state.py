"""Progress that survives a kill: everything a stage needs to go on, in one file that is replaced in one move."""

from pathlib import Path
from typing import Any

import torch


def save(path: Path, **state: Any) -> None:
    """Write `state` (tensors, state dicts, numbers) to `path`; a kill leaves the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    temporary.replace(path)


def load(path: Path) -> dict[str, Any] | None:
    """What `save` wrote, or None at a first start."""
    return torch.load(path, weights_only=True) if path.exists() else None
