"""The README of a run's adapter: what the adapter learned, and its numbers."""

from __future__ import annotations

from typing import Any

from atomtune.errors import counted
from atomtune.storage.cards import adapter_card
from atomtune.training.config import CustomizeConfig


def model_card(config: CustomizeConfig, modules: str, numbers: dict[str, Any], prompt: str) -> str:
    """The card of the adapter on `modules`, with a table of `numbers`, and `prompt` as an example to draw."""
    rows = "\n".join(f"| {name.replace('_', ' ')} | {_shown(value)} |" for name, value in numbers.items())
    text = f"""\
{config.token!r} is one particular {config.class_name}, learnt from {counted(numbers["images"], "image")} by
[atomtune](https://arxiv.org/abs/2507.10855) ({config.method} on {modules}).

| | |
|---|---|
{rows}
"""
    return adapter_card(config.base, config.method, config.instance_prompt, text, prompt=prompt, license=config.license)


def _shown(value: Any) -> str:
    """A number with the digits that say something."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
