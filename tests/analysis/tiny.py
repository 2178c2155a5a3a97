"""A miniature PixArt-Σ pipeline with 16 awake atoms on each of its two attention layers."""

from collections.abc import Sequence
from typing import Any

from peft import get_peft_model

from atomtune.adapters import AtomConfig
from tests.adapters.tiny import wake
from tests.tiny_pixart import tiny_pixart


def adapted_pixart(activation: str = "topk", target_modules: Sequence[str] = ("attn1",)) -> Any:
    pipe = tiny_pixart()
    pipe.set_progress_bar_config(disable=True)
    config = AtomConfig(target_modules=list(target_modules), num_atoms=16, density=0.25, activation=activation)
    pipe.transformer = wake(get_peft_model(pipe.transformer, config))
    return pipe
