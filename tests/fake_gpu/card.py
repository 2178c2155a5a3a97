"""A GPU where there is none: tensors that say they are on "gpu", while a CPU computes what is asked of them.

    with Card() as card:
        model.to("gpu")(x.to("gpu"))       what mixes devices raises, as CUDA does
    card.waits                             what made the CPU wait for the card: `.item()`, `.cpu()`, `nonzero`, ...

With `hollow=True` nothing is computed: shapes and devices alone go through, so that a full-size model takes no memory
and little time; what is read from the card is then zero.

"gpu" is torch's PrivateUse1 backend under another name, for the autograd engine asks for one. It is registered when
this module is imported, for the whole process: tests of it run in a process of their own (tests/test_fake_gpu.py).
"""

from __future__ import annotations

import sys
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend


class _Backend:
    """torch.gpu."""

    is_initialized = is_available = staticmethod(lambda: True)
    _is_in_bad_fork = staticmethod(lambda: False)
    device_count = staticmethod(lambda: 1)
    current_device = staticmethod(lambda: 0)
    manual_seed_all = synchronize = empty_cache = staticmethod(lambda *_: None)
    get_rng_state = staticmethod(lambda *_: torch.zeros(16, dtype=torch.uint8))
    set_rng_state = staticmethod(lambda *_: None)
    mem_get_info = staticmethod(lambda *_: (80 * 2**30, 80 * 2**30))
    get_amp_supported_dtype = staticmethod(lambda: [torch.bfloat16, torch.float16])


_setup_privateuseone_for_python_backend("gpu", _Backend())
# Autocast there casts nothing: what is asked under it has to agree by itself.
_autocast = torch.library.Library("_", "IMPL")
_autocast.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
GPU, CPU = torch.device("gpu", 0), torch.device("cpu")

# Ops whose result is as long as the values say, or a number of Python: the CPU waits for the card.
READS = {"_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "_unique2", "unique_dim", "bincount"}
# Ops that CUDA runs with a tensor that is elsewhere.
COPIES = {"_to_copy", "copy_"}
TAKE_SCALARS = {"masked_fill", "masked_fill_", "fill", "fill_"}
INDEXED = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}


class OnCard(torch.Tensor):
    """A tensor that says it is on the card; `inner` is where it really is."""

    inner: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # pyright: ignore[reportAssignmentType]

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> OnCard:
        made = torch.Tensor._make_wrapper_subclass(  # pyright: ignore[reportAttributeAccessIssue]
            cls, inner.size(), strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            layout=inner.layout, device=GPU, requires_grad=False,
        )  # fmt: skip
        made.inner = inner
        return made

    # What `Module.to` asks for, so that a module's parameters become of this class.
    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["inner"], None

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, torch.Tensor], _context: None, _size: Any, _stride: Any) -> OnCard:
        return OnCard(inner["inner"])

    def tolist(self) -> Any:  # torch's own refuses every subclass
        return self.detach().cpu().tolist()

    def untyped_storage(self) -> torch.UntypedStorage:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self.inner.untyped_storage()  # PEFT looks for tensors that share one

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError("can't convert gpu:0 device type tensor to numpy. Use Tensor.cpu() first.")

    __array__ = numpy

    def __repr__(self, **_: Any) -> str:
        return f"OnCard({self.inner})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"{func} on the card outside of its block")


class Card(TorchDispatchMode):
    """Inside the block there is a device "gpu". `waits` counts what made the CPU wait for it, by op and place.

    torch has no random generators for it: with `generators` those of the CPU stand for them."""

    def __init__(self, hollow: bool = False, generators: bool = False) -> None:
        super().__init__()
        self.generators = generators
        self.inside = torch.device("meta") if hollow else CPU
        self.waits: Counter[str] = Counter()
        self._before: list[bool] = []

    def __enter__(self) -> Any:
        self._before.append(torch._C._only_lift_cpu_tensors())
        torch._C._set_only_lift_cpu_tensors(True)  # so that `torch.tensor(..., device="gpu")` comes by here
        return super().__enter__()

    def __exit__(self, *exception: Any) -> None:
        torch._C._set_only_lift_cpu_tensors(self._before.pop())
        super().__exit__(*exception)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if _is_made_of_others(func):
            with self:
                return func.decompose(*args, **(kwargs or {}))
        kwargs, name = kwargs or {}, func._schema.name.removeprefix("aten::")
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        there = any(isinstance(x, OnCard) for x in given)  # before
        device = kwargs.get("device")
        here = there if device is None else torch.device(device).type == "gpu"  # afterwards
        if name == "copy_":
            here = isinstance(args[0], OnCard)
        if not (there or here):
            return func(*args, **kwargs)
        if name == "_fused_sdp_choice":
            return torch.nn.attention.SDPBackend.MATH.value
        self._check(func, name, given, args, kwargs, here)
        self._count(name, args, there, here)

        if name == "_efficientzerotensor":  # a tensor without memory, of which a wrapper does not know
            func, name = torch.ops.aten.zeros.default, "zeros"

        hollow = self.inside.type == "meta"
        if hollow and name == "_local_scalar_dense":
            return torch.zeros((), dtype=args[0].dtype).item()
        if hollow and not here:  # read from the card
            result = torch.empty_like(args[0], device=CPU, dtype=kwargs.get("dtype")) if name != "copy_" else args[0]
            return result.zero_()
        if device is not None:
            kwargs = kwargs | {"device": self.inside if here else device}
        inner: Any = tree_map_only(OnCard, lambda x: x.inner, (args, kwargs))
        if hollow:
            inner = tree_map_only(torch.Tensor, lambda x: x.to("meta"), inner)
        found = func(*inner[0], **inner[1])
        if here and name != "copy_":
            found = tree_map_only(torch.Tensor, OnCard, found)
        return return_and_correct_aliasing(func, args, kwargs, found) if there else found

    def _check(self, func: Any, name: str, given: list[Any], args: Any, kwargs: Any, here: bool) -> None:
        """Raise where CUDA would."""
        generator = None if self.generators else kwargs.get("generator")
        if generator is not None and here and generator.device.type != "gpu":
            raise RuntimeError(f"{name}: expected a 'gpu' device type for generator but found 'cpu'")
        if name in COPIES:
            return
        away = [x for x in given if not isinstance(x, OnCard) and (x.ndim or name not in TAKE_SCALARS)]
        if torch.Tag.pointwise in func.tags and not (func._schema.is_mutable and any(x is args[0] for x in away)):
            away = [x for x in away if x.ndim]
        if name in INDEXED and isinstance(args[0], OnCard):  # indices may come from the CPU
            away = [x for x in args[2:3] if isinstance(x, torch.Tensor) and not isinstance(x, OnCard) and x.ndim]
        if away and len(given) > 1:
            raise RuntimeError(
                f"{name}: expected all tensors to be on the same device, found gpu:0 and {away[0].device}"
            )

    def _count(self, name: str, args: Any, there: bool, here: bool) -> None:
        waits = name in READS
        if name == "_to_copy":
            waits = there != here
        elif name == "copy_":
            waits = isinstance(args[0], OnCard) != isinstance(args[1], OnCard)
        elif name in INDEXED:  # a mask, whose rows have to be counted, or indices that have to be sent
            waits = any(i is not None and (i.dtype == torch.bool or not isinstance(i, OnCard)) for i in args[1])
        if waits:
            self.waits[f"{name} in {_place()}"] += 1


@cache
def _is_made_of_others(func: Any) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd")


def _place() -> str:
    """The innermost line of atomtune that led here, or "elsewhere"."""
    frame = sys._getframe(1)
    while frame is not None and "/src/atomtune/" not in frame.f_code.co_filename:
        frame = frame.f_back
    return "elsewhere" if frame is None else f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"


def moved(tree: Any, device: torch.device | str) -> Any:
    """All tensors of a tree on this device."""
    return tree_map_only(torch.Tensor, lambda x: x.to(device), tree)


def waits_of(card: Card, owner: type, method: str, monkeypatch: Any) -> list[Counter[str]]:
    """What every call of a method will wait for, by op and file, filled in as it is called."""
    found: list[Counter[str]] = []
    original = getattr(owner, method)

    def counted(*args: Any, **kwargs: Any) -> Any:
        before = card.waits.copy()
        try:
            return original(*args, **kwargs)
        finally:
            now: Counter[str] = Counter()
            for place, times in (card.waits - before).items():
                now[place.rpartition(":")[0] or place] += times
            found.append(now)

    monkeypatch.setattr(owner, method, counted)
    return found
