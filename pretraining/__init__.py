"""Rebuild moji, the embedded base, from nothing: `python -m pretraining`. See pretraining/README.md."""

import os
from pathlib import Path

import torch

CACHE = Path(os.environ.get("ATOMTUNE_CACHE", Path.home() / ".cache" / "atomtune")) / "pretraining"
WEIGHTS = Path(__file__).parent.parent / "src" / "atomtune" / "moji" / "weights"


def autocast(device: str = "cpu") -> torch.autocast:
    """bfloat16 on a card and on a CPU that computes in it; elsewhere float32: imitating it is ten times as slow."""
    native = torch.cpu.get_capabilities()
    known = any(native.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return torch.autocast(device, torch.bfloat16, enabled=device != "cpu" or known)
