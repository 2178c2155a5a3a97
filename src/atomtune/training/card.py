"""The README of a run's adapter: what the adapter learned, and its numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from atomtune.errors import counted
from atomtune.prompts import Subject
from atomtune.storage.cards import adapter_card
from atomtune.training.config import CustomizeConfig


def model_card(
    config: CustomizeConfig, subjects: Sequence[Subject], modules: str, numbers: dict[str, Any], prompt: str
) -> str:
    """The card of the adapter on `modules`, with a table of `numbers`, and `prompt` as an example to draw."""
    rows = "\n".join(f"| {name.replace('_', ' ')} | {_shown(value)} |" for name, value in numbers.items())
    said = " and ".join(f"{each.token!r} is one particular {each.class_name}" for each in subjects)
    title = config.caption or ", ".join(f"a {each}" for each in subjects)
    text = f"""\
{said}, learnt from {counted(numbers["images"], "image")} by
[atomtune](https://arxiv.org/abs/2507.10855) ({config.method} on {modules}).

| | |
|---|---|
{rows}
"""
    return adapter_card(config.base, config.method, title, text, prompt=prompt, license=config.license)


def _shown(value: Any) -> str:
    """A number with the digits that say something."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return ", ".join(value)
    return f"{value:,}" if isinstance(value, int) else str(value)
