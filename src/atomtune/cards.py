"""The README of an adapter folder: what a hub reads, how to open it, what it is."""

from __future__ import annotations

from pathlib import Path


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
