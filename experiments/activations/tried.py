"""What was tried and is not in the library: heads normalised, and dead atoms drawn anew.

Both wait for the dictionaries that run while they are on, by the hooks that torch has for every module and optimizer.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook

from atomtune.method.dictionary import SparseDictionary
from atomtune.method.sigma import SigmaConfig, TopK


@contextmanager
def every_dictionary(meet: Callable[[SparseDictionary], None]) -> Iterator[None]:
    """`meet` is called with each dictionary that runs in here, before it runs for the first time."""
    known: set[nn.Module] = set()

    def before(module: nn.Module, _args: Any) -> None:
        if isinstance(module, SparseDictionary) and module not in known:
            known.add(module)
            meet(module)

    hook = register_module_forward_pre_hook(before)
    try:
        yield
    finally:
        hook.remove()


class NormalisedHeads(TopK):
    """σ: top-k among coefficients divided by their root mean square in their head, so that no head is louder."""

    head: Tensor

    def __init__(self, dictionary: SparseDictionary) -> None:
        super().__init__(dictionary.num_atoms, SigmaConfig(density=dictionary.sigma.density))
        self.register_buffer("head", dictionary.head, persistent=False)

    def forward(self, coefficients: Tensor) -> Tensor:
        square = coefficients.detach().square().flatten(0, -2).mean(0)
        counts = torch.bincount(self.head)
        size = (torch.zeros(len(counts)).index_add_(0, self.head, square) / counts).sqrt()
        return super().forward(coefficients / size[self.head].clamp_min(1e-6))


@contextmanager
def normalised_heads() -> Iterator[None]:
    """Every dictionary has `NormalisedHeads` as its σ."""

    def meet(dictionary: Any) -> None:
        dictionary.sigma = NormalisedHeads(dictionary)

    with every_dictionary(meet):
        yield


@contextmanager
def resampled(every: int = 50, until: int = 150) -> Iterator[None]:
    """Atoms that fired for no token since the last time start again: a new column of W_s, and D at zero."""
    fired: dict[SparseDictionary, Tensor] = {}
    steps = 0

    def meet(dictionary: SparseDictionary) -> None:
        fired[dictionary] = torch.zeros(dictionary.num_atoms)

        def count(_module: nn.Module, args: tuple[Tensor]) -> None:
            if torch.is_grad_enabled():  # training, not drawing
                fired[dictionary] += (args[0] != 0).flatten(0, -2).sum(0)

        dictionary.decoder.register_forward_pre_hook(count)

    @torch.no_grad()
    def after(_optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
        nonlocal steps
        steps += 1
        if steps % every == 0 and steps <= until:
            generator = torch.Generator().manual_seed(steps)
            for dictionary, count in fired.items():
                dead = (count == 0).nonzero().flatten()
                width = dictionary.encoder.weight.shape[1]
                new = torch.randn(len(dead), width, generator=generator)
                dictionary.encoder.weight[dead] = new * width**-0.5
                dictionary.decoder.weight[dead] = 0
                count.zero_()

    hook = register_optimizer_step_post_hook(after)
    try:
        with every_dictionary(meet):
            yield
    finally:
        hook.remove()
