"""Where a base runs, and in which precision: the same rule for every command.

The accelerator if there is one, in half precision; else the CPU, in float32.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import torch

from atomtune.errors import UserError

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def pick_device(device: str | torch.device = "auto") -> torch.device:
    """The device of that name. "auto" is the device that accelerate picks: the accelerator if there is one, another
    one for each process. Raises `UserError` if there is no such device."""
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    cpu = parse_flag_from_env("ACCELERATE_USE_CPU")  # accelerate's own switch
    state: Any = PartialState(cpu=cpu)
    # `state.device` is that of the last run in this process
    default = torch.device("cpu") if cpu else state.default_device
    if state.num_processes > 1:
        default = state.device
    if device == "auto":
        return default
    try:
        chosen = torch.device(device)
        torch.empty(1, device=chosen)  # raises if torch was built without it, or there is no driver or no such index
    except (RuntimeError, AssertionError, ImportError) as error:
        raise UserError(
            f"there is no device {str(device)!r} here: expected auto (which is {default}), cpu, or an accelerator that "
            "torch finds, such as cuda, cuda:1, mps or xpu."
        ) from error
    if chosen.type == "meta":
        raise UserError("the device 'meta' computes nothing: expected auto, cpu, cuda, mps or xpu.")
    return default if chosen.index is None and chosen.type == default.type else chosen


def pick_dtype(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype:
    """The precision of that name; None and "auto" are bfloat16 on an accelerator, float16 if it has no bfloat16,
    and float32 on a CPU. Raises `UserError`."""
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype in (None, "auto"):
        if device.type == "cpu":
            return torch.float32
        return torch.bfloat16 if _has_bfloat16(device) else torch.float16
    if dtype not in DTYPES:
        raise UserError(f"dtype must be auto, {', '.join(DTYPES)}, got {dtype!r}.")
    return DTYPES[dtype]


LISTENING = 0.3
"""Seconds over which idle cores are counted."""


def idle_threads(model: torch.nn.Module, but: int = 0) -> int:
    """Threads for PyTorch on the CPU: one for each core that does nothing now, `but` for so many of them; at least one,
    and never more than PyTorch has or a model of this size can use. On small models every operation waits for its
    slowest thread, so a thread too many on a busy machine costs far more than one too few (docs/results/speed.md).
    OMP_NUM_THREADS is taken at its word."""
    most = torch.get_num_threads()
    if most == 1 or "OMP_NUM_THREADS" in os.environ:
        return most
    times = psutil.cpu_times_percent(LISTENING)._asdict()  # of less than a second they do not add up to 100
    idle = sum(times.get(kind, 0.0) for kind in ("idle", "iowait", "nice"))  # who is nice makes room
    return max(1, min(most, useful_threads(model), round(most * idle / (sum(times.values()) or 1)) - but))


def useful_threads(model: torch.nn.Module) -> int:
    """About the most threads of which each works for half of its time or more on a model of this size, and else waits
    for the others: 1 + 4 ∛(parameters / 10 million), from what a second thread brings (docs/results/speed.md)."""
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    return round(1 + 4 * (millions / 10) ** (1 / 3))


def use_idle_cores(model: torch.nn.Module, but: int = 0) -> None:
    """Give PyTorch `idle_threads` if the model is on the CPU. A program whose page, in a browser on the same computer,
    needs a core too leaves it one."""
    if next(model.parameters()).device.type == "cpu":
        torch.set_num_threads(idle_threads(model, but))


@contextmanager
def own_threads() -> Iterator[None]:
    """A number of threads that is set inside the block holds there alone."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def free_memory(device: torch.device) -> int | None:
    """Bytes that are free on the accelerator; None on a CPU, and on an accelerator that does not tell."""
    if device.type == "cpu":
        return None
    ask = getattr(torch.get_device_module(device), "mem_get_info", None)
    return None if ask is None else ask(device)[0]


def _has_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        with torch.cuda.device(device):
            return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type != "mps" or torch.backends.mps.is_macos_or_newer(14, 0)
