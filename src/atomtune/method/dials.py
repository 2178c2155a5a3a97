"""Dials: a module whose own numbers are exact and at hand, whatever is done to the model around it.

Gains, thresholds, statistics and numbers of atoms are few, they are compared, counted and followed in small steps, and
a user turns them at any time. So they never go below float32 (`model.to(torch.bfloat16)` moves them to the device
alone), and offloading, of buffers too, leaves them where the model computes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class Dials(nn.Module):
    """An `nn.Module` whose own floating-point buffers keep at least float32. What trains, and its children, follow as
    usual."""

    def __init__(self) -> None:
        super().__init__()
        self._saved: set[str] = set()

    def register_buffer(self, name: str, tensor: Tensor | None, persistent: bool = True) -> None:
        """As torch's, but only saving and loading see that a buffer is persistent: what is not, accelerate's
        offloading leaves in place. It takes every such name for a tensor's, so those of None are not among them."""
        if persistent:
            self._saved.add(name)
        super().register_buffer(name, tensor, persistent=tensor is None)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Dials:
        dials = {id(buffer) for buffer in self._buffers.values()}

        def exact(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            narrowed = id(tensor) in dials and _narrow(moved) and not _narrow(tensor)
            return tensor.to(moved.device) if narrowed else moved

        if recurse:
            for child in self.children():
                child._apply(fn)
        return super()._apply(exact, recurse=False)

    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> None:
        with self._persistent():
            super()._save_to_state_dict(*args, **kwargs)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        with self._persistent():
            super()._load_from_state_dict(*args, **kwargs)
        # A file may hold them in fewer bits, and `assign` takes them as they are.
        for name, buffer in self._buffers.items():
            if buffer is not None and _narrow(buffer):
                self._buffers[name] = buffer.float()

    @contextmanager
    def _persistent(self) -> Iterator[None]:
        registered = self._non_persistent_buffers_set
        self._non_persistent_buffers_set = registered - self._saved
        try:
            yield
        finally:
            self._non_persistent_buffers_set = registered


def _narrow(tensor: Tensor) -> bool:
    """Whether it holds floating-point numbers of fewer bits than float32."""
    return tensor.is_floating_point() and torch.finfo(tensor.dtype).bits < 32
