"""What the tests of whole runs share."""

from pathlib import Path
from typing import Any

QUICK: dict[str, Any] = {"class_name": "dog", "steps": 4, "checkpoint_every": 2, "batch_size": 2, "sample_every": 0}


def weights(out: Path) -> bytes:
    return (out / "adapter" / "adapter_model.safetensors").read_bytes()


def state(out: Path) -> dict[str, bytes]:
    """Everything that must be the same to the bit: weights, the last checkpoint's state, images."""
    last = sorted((out / "checkpoints").iterdir())[-1]
    files = [*out.glob("adapter/*.safetensors"), *last.rglob("*.safetensors"), *out.glob("samples/*")]
    return {str(file.relative_to(out)): file.read_bytes() for file in files}
