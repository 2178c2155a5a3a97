"""Which layer of a diverged run is the first with numbers that are not finite."""

from __future__ import annotations

from collections.abc import Callable

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from torch.utils._pytree import tree_leaves

from atomtune.adapters.layer import AtomLayer, adapted_name


@torch.no_grad()
def first_output(model: nn.Module, forward: Callable[[], object]) -> tuple[int, int]:
    """Of the modules of `model`, the places of the first one that `forward()` makes answer with something that is not
    finite, and of the last one in an adapted layer that answered before it; -1 where there is none."""
    found, before, adapted = [-1], [-1], _owners(model)

    def watch(place: int, output: object) -> None:
        tensors = [leaf for leaf in tree_leaves(output) if isinstance(leaf, torch.Tensor) and leaf.is_floating_point()]
        if found[0] < 0 and not all(bool(tensor.isfinite().all()) for tensor in tensors):
            found[0] = place
        if found[0] < 0 and place in adapted:
            before[0] = place

    hooks = [
        module.register_forward_hook(lambda _module, _args, output, place=place: watch(place, output))
        for place, module in enumerate(model.modules())
    ]
    try:
        forward()
    finally:
        for hook in hooks:
            hook.remove()
    return found[0], before[0] if found[0] >= 0 else -1


def first_gradient(model: nn.Module) -> int:
    """The place of the module in whose gradients the backward pass met the first that is not finite: the last one in
    the order of the layers; -1 if all gradients are finite."""
    places = [
        place
        for place, module in enumerate(model.modules())
        for parameter in module.parameters(recurse=False)
        if parameter.grad is not None and not bool(parameter.grad.isfinite().all())
    ]
    return max(places, default=-1)


def described(model: nn.Module, place: int, before: int = -1) -> str:
    """Where it began, for a sentence: "first in L3 (transformer_blocks.3.attn1)"; of a layer of the base, also the
    adapted layer before it, whose answer it was given."""
    after = f", after {_name(model, before)}" if before >= 0 and place not in _owners(model) else ""
    return f"first in {_name(model, place)}{after}"


def _name(model: nn.Module, place: int) -> str:
    """The name of a module as a user knows it: the address and name of the adapted layer that it is a part of, or its
    own name in the base."""
    names, modules = zip(*model.named_modules())
    owner = _owners(model).get(place, place)
    plain = adapted_name(names[owner]).removeprefix("base_model.model.") or "the denoiser"
    layer = modules[owner]
    return f"L{int(layer.dictionary('default').layer)} ({plain})" if isinstance(layer, AtomLayer) else plain


def _owners(model: nn.Module) -> dict[int, int]:
    """For the place of each module in an adapted layer, the place of that layer."""
    places = {id(module): place for place, module in enumerate(model.modules())}
    return {
        places[id(part)]: places[id(layer)]
        for layer in model.modules()
        if isinstance(layer, BaseTunerLayer) and isinstance(layer, nn.Module)
        for part in layer.modules()
    }
