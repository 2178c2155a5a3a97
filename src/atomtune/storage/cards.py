"""The README of an adapter folder: what a hub reads, how to open it, what it is."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path

from atomtune.storage.metadata import CONFIG_FILE, read_metadata

logger = logging.getLogger(__name__)

CARD = "README.md"


def adapter_card(
    base: str, method: str, title: str, text: str, *, prompt: str | None = None, license: str | None = None
) -> str:
    """Markdown that begins with what a hub reads, and the import without which PEFT does not know atoms.

    `prompt` is one to draw. A base that is a folder of this machine is not told to the hub.
    """
    told = [f"base_model: {base}"] if not Path(base).is_absolute() else []
    told += [f"license: {license}"] if license else []
    draw = f"\nimage = atomtune.generate(pipe, {prompt!r})[0].image" if prompt else ""
    first = "\n".join([*told, "library_name: peft", "pipeline_tag: text-to-image", f"tags: [atomtune, {method}]"])
    return f"""\
---
{first}
---
```python
import atomtune

pipe = atomtune.load_base({base!r})
atomtune.load_adapter(pipe, "path/to/this/folder"){draw}
```

# {title}

The import comes first: without it PEFT does not know the method and says so with a KeyError.

{text.strip()}
"""


def write_card(new: Path, folder: Path, text: str) -> str | None:
    """Write `text` as the README.md of the adapter in `new`, which is about to take its place in `folder`.

    Returns its digest, which the header of the weights keeps (`metadata`) as the proof that it is ours. If `folder` has
    a README.md without that proof, somebody else's or changed since, none is written: None.
    """
    there = folder / CARD
    if there.is_file() and _digest(there.read_bytes()) not in (_recorded(folder), _digest(text.encode())):
        (new / CARD).unlink(missing_ok=True)  # PEFT writes one of its own
        logger.warning("%s is not as atomtune wrote it, and stays as it is: it may not describe this adapter", there)
        return None
    (new / CARD).write_bytes(text.encode())
    return _digest(text.encode())


def _recorded(folder: Path) -> str | None:
    """The digest that the adapter in `folder` keeps, if it can be read."""
    from safetensors import SafetensorError

    try:
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        return read_metadata(folder, config).get("card")
    except (OSError, ValueError, AttributeError, SafetensorError):
        return None


def _digest(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()[:16]
