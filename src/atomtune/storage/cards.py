"""The README of an adapter folder: fields for the hub, how to open the adapter, and a description."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path

from atomtune.storage.metadata import CONFIG_FILE

logger = logging.getLogger(__name__)

CARD = "README.md"
_DIGEST_LINE = "<!-- as atomtune wrote it: {} -->"


def adapter_card(
    base: str, method: str, title: str, text: str, *, prompt: str | None = None, license: str | None = None
) -> str:
    """Markdown that begins with fields for the hub, and with the import without which PEFT does not know atoms.

    `prompt` is an example to draw. A base that is a local folder is not named in the fields for the hub.
    """
    fields = [f"base_model: {base}"] if not Path(base).is_absolute() else []
    fields += [f"license: {license}"] if license else []
    draw = f"\nimage = atomtune.generate(pipe, {json.dumps(prompt, ensure_ascii=False)})[0].image" if prompt else ""
    first = "\n".join([*fields, "library_name: peft", "pipeline_tag: text-to-image", f"tags: [atomtune, {method}]"])
    return f"""\
---
{first}
---
```python
import atomtune

pipe = atomtune.load_base({json.dumps(base, ensure_ascii=False)})
atomtune.load_adapter(pipe, "path/to/this/folder"){draw}
```

# {title}

The import comes first: without it PEFT does not know the method and says so with a KeyError.

{text.strip()}
"""


def write_card(new: Path, folder: Path, text: str) -> None:
    """Write `text` as the README.md of the adapter in `new`, which is about to take its place in `folder`.

    Its last line, an invisible comment, holds the digest of the other lines: the proof that atomtune wrote the card. If
    `folder` has a README.md without this proof, that file stays and no new one is written.
    """
    there = folder / CARD
    if there.is_file() and not _is_ours(there, text):
        (new / CARD).unlink(missing_ok=True)  # PEFT writes one of its own
        logger.warning("%s is not as atomtune wrote it, and stays as it is: it may not describe this adapter", there)
        return
    text = text.rstrip()
    (new / CARD).write_bytes(f"{text}\n\n{_DIGEST_LINE.format(_digest(text))}\n".encode())


def read_card(folder: Path) -> str | None:
    """The README.md of an adapter, without the line with the digest; None if there is no README.md."""
    if not (folder / CARD).is_file():
        return None
    text = (folder / CARD).read_text(encoding="utf-8", errors="replace").rstrip()
    body, _, last = text.rpartition("\n")
    return body.rstrip() if last == _DIGEST_LINE.format(_digest(body.rstrip())) else text


def _is_ours(card: Path, text: str) -> bool:
    there = card.read_text(encoding="utf-8", errors="replace")
    if there.rstrip() == text.rstrip() or there.rstrip() != read_card(card.parent):
        return True
    try:  # earlier versions kept the digest in PEFT's config
        config = json.loads((card.parent / CONFIG_FILE).read_text(encoding="utf-8"))
        return _digest(there) == config["auto_mapping"]["card"]
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
