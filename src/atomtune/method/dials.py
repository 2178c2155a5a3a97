"""Dials: a module whose own buffers stay exact and on the computing device, whatever is done to the model around it.

Gains, thresholds, statistics and ids of atoms are few numbers, which are compared, counted and changed in small steps,
and which a user may change at any time. So they always have at least float32 (`model.to(torch.bfloat16)` changes only
their device), and offloading, of buffers too, leaves them on the device where the model computes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class Dials(nn.Module):
    """An `nn.Module` whose own floating-point buffers keep at least float32. Parameters
    and children behave as usual."""

    def __init__(self) -> None:
        super().__init__()
        self._saved: set[str] = set()

    def register_buffer(self, name: str, tensor: Tensor | None, persistent: bool = True) -> None:
        """As torch's, but a buffer is persistent only while saving and loading, because accelerate's offloading leaves
        buffers in place that are not persistent. It takes every such name for that of a tensor, so buffers that are
        None stay persistent."""
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
    """Whether the tensor holds floating-point numbers of fewer bits than float32."""
    return tensor.is_floating_point() and torch.finfo(tensor.dtype).bits < 32
