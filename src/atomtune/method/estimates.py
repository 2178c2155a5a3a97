"""Running estimates of σ, from the coefficients of training: levels of |c|, and the root mean square of c.

An estimate moves once per optimizer step, towards the mean over the step's forward passes. It does not matter how many
forward passes there are: several micro batches, or each of them twice with gradient checkpointing. `SparseDictionary`
calls `update_estimates` after the step of any `torch.optim.Optimizer`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from atomtune.method.dials import Dials

OCTAVES = 11
"""`quantiles` has |c| at the densities 1, 1/2, 1/4, …, 2⁻¹⁰; that of those between is interpolated over log ρ."""
PACE = 0.1
"""Share of a running estimate that one optimizer step replaces."""
SAMPLE = 2**14
"""Coefficients of a batch from which `quantiles` are estimated."""


class Estimates(Dials):
    """A module with running estimates. `observed_sum` and `observed_count` are the sum and the number of observations
    since the last optimizer step."""

    observed_sum: Tensor | None
    observed_count: Tensor | None

    def start_estimates(self, observed_sum: Tensor | None, observed_count: Tensor | None) -> None:
        """Start with these zeros, [atoms, ...] and [atoms], or with None if nothing is estimated."""
        self.register_buffer("observed_sum", observed_sum, persistent=False)
        self.register_buffer("observed_count", observed_count, persistent=False)

    @torch.no_grad()
    def observe(self, value: Tensor) -> None:
        """Add the value of this batch to the observations."""
        self.observed_sum += value  # pyright: ignore[reportOperatorIssue]
        self.observed_count += 1  # pyright: ignore[reportOperatorIssue]

    @property
    def observing(self) -> bool:
        """Whether this forward pass is observed: one of training, of a σ with estimates."""
        return self.has_estimates and self.training and torch.is_grad_enabled()

    @property
    def has_estimates(self) -> bool:
        """Whether this σ has running estimates."""
        return self.observed_count is not None

    def update_estimates(self) -> None:
        """Move the running estimates towards the mean of the observations since the last call. The first mean is taken
        as it is. Without observations nothing happens."""

    def discard_observations(self) -> None:
        """Delete the observations since the last `update_estimates`, as after an optimizer step that was skipped."""
        for observed in (self.observed_sum, self.observed_count):
            if observed is not None:
                observed.zero_()

    def average_observations(self, mean: Callable[[Tensor], Tensor]) -> None:
        """Before an optimizer step: replace the observations by their `mean` over processes, so that all have the
        same."""
        for observed in (self.observed_sum, self.observed_count):
            if observed is not None:
                observed.copy_(mean(observed))


def mean_square(coefficients: Tensor) -> Float[Tensor, ""]:
    """In float32 at least, because half precision overflows from |c| = 256."""
    c = coefficients.detach()
    return c.to(torch.promote_types(c.dtype, torch.float32)).square().mean()


def quantiles(coefficients: Tensor) -> Float[Tensor, " octaves"]:
    """For each j, the |c| that a share 2⁻ʲ of the coefficients reaches or exceeds."""
    magnitudes = coefficients.abs().flatten()
    largest = magnitudes[:: max(1, len(magnitudes) // SAMPLE)].sort(descending=True).values
    places = [max(0, math.ceil(len(largest) * 2.0**-octave) - 1) for octave in range(OCTAVES)]
    return torch.stack([largest[place] for place in places])  # a list as an index would be copied to the GPU


def move(running: Tensor, now: Tensor) -> None:
    """Move `running` towards `now`, except where `now` is NaN: without observations, or after an overflow."""
    moved = torch.where(running == 0, now, running.lerp(now, PACE))
    running.copy_(torch.where(now.isfinite(), moved, running))
