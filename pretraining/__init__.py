"""Rebuild moji, the embedded base, from nothing: `python -m pretraining`. See pretraining/README.md."""

import os
from pathlib import Path

CACHE = Path(os.environ.get("ATOMTUNE_CACHE", Path.home() / ".cache" / "atomtune")) / "pretraining"
WEIGHTS = Path(__file__).parent.parent / "src" / "atomtune" / "moji" / "weights"
