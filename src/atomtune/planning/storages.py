"""Count the memory that a computation would take, without doing it.

Tensors on torch's "meta" device have shapes and no values, so a model of any size runs on them in seconds. A dispatch
mode sees every operation; it notes each new storage and when it is freed:

    peak = max over time of Σ bytes of the storages that are alive

The same mode on real tensors counts what they take, which is how the tests compare the two.
"""

from __future__ import annotations

import weakref
from functools import partial
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only


class Storages(TorchDispatchMode):
    """Inside the block: `live` and `peak`, the bytes of all storages on `device` that were made there. What an
    operation is given and none has made was there before.

    On the meta device, small tensors with values (masks, positions) may be mixed with those without: each operation on
    both gives a tensor without values.
    """

    def __init__(self, device: str = "meta") -> None:
        super().__init__()
        self.device = device
        self.live = self.peak = 0
        self._known: dict[int, Any] = {}

    @property
    def passing(self) -> int:
        """The peak without what is alive in the end. After a step these are tables that the model made at its first
        call and keeps, of positions: a few MiB at most."""
        return self.peak - self.live

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        for each in given:
            self._know(each.untyped_storage(), 0)
        if len({each.is_meta for each in given}) == 2:
            args, kwargs = tree_map_only(Tensor, _without_values, (args, kwargs))
        result = func(*args, **kwargs)
        for made in tree_leaves(result):
            if isinstance(made, Tensor) and made.device.type == self.device:
                storage = made.untyped_storage()
                self._know(storage, storage.nbytes())
        return result

    def _know(self, storage: Any, size: int) -> None:
        """Count `size` bytes from now on until the storage is freed, unless it is known."""
        if (key := storage._cdata) not in self._known:
            self._known[key] = weakref.ref(storage, partial(self._forget, key, size))
            self.live += size
            self.peak = max(self.peak, self.live)

    def _forget(self, key: int, size: int, _: Any) -> None:
        del self._known[key]
        self.live -= size


def _without_values(tensor: Tensor) -> Tensor:
    return tensor if tensor.is_meta else tensor.to("meta")
