"""Count the memory that a computation would take, without doing it.

Tensors on torch's "meta" device have shapes and no values, so a model of any size runs on them in seconds. A dispatch
mode sees every operation; it notes each new storage and when it is freed:

    peak = max over time of Σ bytes of the storages that are alive

The same mode on real tensors counts what they take, which is how the tests compare the two.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only


class Storages(TorchDispatchMode):
    """Inside the block: `live` and `peak`, the bytes of all storages on `device` that were made there.

    On the meta device, small tensors with values (masks, positions) may be mixed with those without: each operation on
    both gives a tensor without values.
    """

    def __init__(self, device: str = "meta") -> None:
        super().__init__()
        self.device = device
        self.live = self.peak = 0
        self._known: dict[int, Any] = {}

    def leave_out(self, tensors: Iterable[Tensor]) -> None:
        """Do not count these, also when an operation returns a view of one."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            self._known[storage._cdata] = storage

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if len({given.is_meta for given in tree_leaves((args, kwargs)) if isinstance(given, Tensor)}) == 2:
            args, kwargs = tree_map_only(Tensor, _without_values, (args, kwargs))
        result = func(*args, **kwargs)
        for made in tree_leaves(result):
            if isinstance(made, Tensor) and made.device.type == self.device:
                self._count(made.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._known:
            return
        size = storage.nbytes()
        self.live += size
        self.peak = max(self.peak, self.live)

        def freed(_: Any) -> None:
            self.live -= size
            del self._known[key]

        self._known[key] = weakref.ref(storage, freed)


def _without_values(tensor: Tensor) -> Tensor:
    return tensor if tensor.is_meta else tensor.to("meta")
