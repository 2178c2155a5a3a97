"""The README of an adapter folder: what it is, how to open it, what was measured."""

from __future__ import annotations

from typing import Any

from atomtune.training.config import CustomizeConfig

USE = """\
```python
import atomtune

pipe = atomtune.load_base({base!r})
atomtune.load_adapter(pipe, "path/to/this/folder")
image = atomtune.generate(pipe, {prompt!r})[0].image
```
"""


def model_card(config: CustomizeConfig, numbers: dict[str, Any]) -> str:
    """Markdown that begins with what a hub reads and the import without which PEFT does not know atoms."""
    rows = "\n".join(f"| {name.replace('_', ' ')} | {value} |" for name, value in numbers.items())
    return f"""\
---
base_model: {config.base}
library_name: peft
tags: [atomtune, {config.method}, text-to-image]
---
{USE.format(base=config.base, prompt=config.instance_prompt)}
# {config.instance_prompt}

{config.token!r} is one particular {config.class_name}, learnt from {numbers["pictures"]} pictures by
[atomtune](https://arxiv.org/abs/2507.10855) ({config.method} on {", ".join(config.target_modules)}).
The import comes first: without it PEFT does not know the method and says so with a KeyError.

| | |
|---|---|
{rows}
"""
