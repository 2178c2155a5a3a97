"""Threshold: σ that compares each coefficient with a λ, and where that λ comes from.

    soft        sign(c) · max(|c| − λ, 0)    λ is given
    relu        max(c − λ, 0)                λ is given
    jumprelu    c · H(c − λ)                 λ = e^θ, one θ for each atom, learned (Rajamanoharan et al. 2024)
    batch_topk  c where |c| ≥ λ              training: λ leaves k·N of the batch's coefficients; afterwards: the λ that
                                             did so in training, whatever else is in the batch (Bussmann et al. 2024)

A given or learned λ may be in units of the layer's running activation scale, λ · r with r the root mean square of c, so
that growing encoders do not outgrow it. What is estimated while training is saved with the adapter, a row per atom, so
that pruning and concatenation take it along.

An estimate moves once per optimizer step, towards the mean of what the step's forward passes saw. They only add to that
mean, so it does not matter how many there are: several micro batches, or each of them twice under gradient
checkpointing. `SparseDictionary` sees to it that `follow` is called after the step of any `torch.optim.Optimizer`.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from atomtune.method.coding import batch_threshold, hard_threshold, jump_relu, relu_threshold, soft_threshold
from atomtune.method.dials import Dials

OCTAVES = 11
"""`levels` has λ at the densities 1, 1/2, 1/4, …, 2⁻¹⁰; the λ of those between is interpolated over log ρ."""
PACE = 0.1
"""How much of a running estimate one optimizer step replaces."""
BANDWIDTH = 0.25
"""ε of jumprelu, in units of λ."""
SAMPLE = 2**14
"""Coefficients of a batch from which `levels` is estimated."""


class Threshold(Dials):
    """σ by threshold. A forward pass in training mode with gradients also notes the coefficients' size, for `follow`;
    any other one is a fixed function.

    Args:
        num_atoms: M.
        activation: "soft", "relu", "jumprelu" or "batch_topk".
        threshold: λ; of jumprelu, its start; not used by batch_topk.
        units: of λ: "absolute", or "scale", times the running root mean square of the layer's coefficients.
    """

    level: Tensor
    levels: Tensor | None
    spread: Tensor | None
    noted: Tensor | None
    notes: Tensor | None

    def __init__(self, num_atoms: int, activation: str, threshold: float = 0.1, units: str = "absolute") -> None:
        super().__init__()
        self.activation, self.threshold = activation, threshold
        self.k, self.sizes = [num_atoms], [num_atoms]
        self.log_threshold = None
        if activation == "jumprelu":
            start = torch.full((num_atoms,), math.log(threshold), dtype=torch.float32)
            self.log_threshold = nn.Parameter(start)
        nothing = torch.zeros(num_atoms, dtype=torch.float32)
        batch, scale = activation == "batch_topk", units == "scale" and activation != "batch_topk"
        octaves = nothing[:, None].repeat(1, OCTAVES)
        self.register_buffer("levels", octaves if batch else None)
        self.register_buffer("level", nothing.clone() if batch else None, persistent=False)
        self.register_buffer("spread", nothing.clone() if scale else None)
        # Since the last optimizer step: the sum of what was seen (of c², or of the octaves' λ), and how often.
        self.register_buffer("noted", octaves.clone() if batch else nothing if scale else None, False)
        self.register_buffer("notes", nothing.clone() if batch or scale else None, persistent=False)

    @property
    def value(self) -> float | Float[Tensor, "#atoms"]:
        """λ as it is compared with the coefficients, after training."""
        if self.activation == "batch_topk":
            return self.level
        return self._own if self.spread is None else self._own * self.spread

    def value_for(self, coefficients: Float[Tensor, "*batch atoms"]) -> float | Float[Tensor, "#atoms"]:
        """λ as it is compared with these. Only in the first step of training, when there is no running scale yet, it is
        another than `value`: in units of these coefficients' own."""
        if self.spread is None or not self.training:
            return self.value
        return self._own * torch.where(self.spread == 0, _mean_square(coefficients).sqrt(), self.spread)

    @property
    def _own(self) -> float | Tensor:
        return self.threshold if self.log_threshold is None else self.log_threshold.exp()

    def forward(self, coefficients: Float[Tensor, "*batch atoms"]) -> Float[Tensor, "*batch atoms"]:
        if self.notes is not None and self.training and torch.is_grad_enabled():
            self._note(coefficients.detach())
        # λ has float32, where coefficients may have less: they are compared as they are, and codes are as they were.
        return self._codes(coefficients).to(coefficients.dtype)

    def _codes(self, coefficients: Float[Tensor, "*batch atoms"]) -> Float[Tensor, "*batch atoms"]:
        if self.activation == "batch_topk":
            return hard_threshold(coefficients, self._of_batch(coefficients) if self.training else self.level)
        λ = self.value_for(coefficients)
        if self.activation == "soft":
            return soft_threshold(coefficients, λ)
        if self.activation == "relu":
            return relu_threshold(coefficients, λ)
        λ = torch.as_tensor(λ)
        return jump_relu(coefficients, λ, BANDWIDTH * λ.detach())

    def aim(self, k: list[int], sizes: list[int]) -> None:
        """batch_topk: let a token use, on average, k of the atoms of each group, which has so many."""
        self.k, self.sizes = k, sizes
        if self.levels is not None and sum(sizes) == len(self.levels):
            # Written where they are used: what is sent to a GPU in every training step makes the CPU wait for it.
            new = self.levels.new_full
            share = torch.cat([new((size,), own / max(1, size), dtype=torch.float32) for own, size in zip(k, sizes)])
            place = -share.log2().clamp(1 - OCTAVES, 0)[:, None]
            below = place.long().clamp(max=OCTAVES - 2)
            low, high = self.levels.gather(1, below), self.levels.gather(1, below + 1)
            self.level.copy_(low.lerp(high, (place - below).to(low))[:, 0])

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        if self.levels is not None and not self.levels.is_meta:
            self.aim(self.k, self.sizes)

    def keep_only(self, rows: Tensor) -> None:
        """Leave out the other atoms."""
        for name, buffer in self.named_buffers():
            setattr(self, name, buffer[rows])
        if (θ := self.log_threshold) is not None:
            self.log_threshold = nn.Parameter(θ.detach()[rows], θ.requires_grad)

    def _of_batch(self, coefficients: Tensor) -> Tensor:
        groups = coefficients.split(self.sizes, dim=-1)
        λ = [batch_threshold(c, k).expand(size) for c, k, size in zip(groups, self.k, self.sizes) if size]
        return torch.cat(λ)

    @torch.no_grad()
    def _note(self, coefficients: Tensor) -> None:
        """Add this batch to what the running estimates will move towards."""
        if self.levels is not None:
            groups = coefficients.split(self.sizes, dim=-1)
            now = torch.cat([_quantiles(c).expand(size, OCTAVES) for c, size in zip(groups, self.sizes) if size])
        else:
            now = _mean_square(coefficients)
        self.noted += now  # pyright: ignore[reportOperatorIssue]
        self.notes += 1  # pyright: ignore[reportOperatorIssue]

    @torch.no_grad()
    def follow(self) -> None:
        """Move the running estimates towards the mean of what was seen since the last call. The first is taken as it
        is; without anything seen, nothing happens."""
        if self.notes is None or self.noted is None:
            return
        if self.spread is not None:
            _follow(self.spread, (self.noted / self.notes).sqrt())
        if self.levels is not None:
            _follow(self.levels, self.noted / self.notes[:, None])
            self.aim(self.k, self.sizes)
        self.forget()

    def forget(self) -> None:
        """What was seen since the last `follow`."""
        if self.notes is not None and self.noted is not None:
            self.noted.zero_()
            self.notes.zero_()

    def share(self, mean: Callable[[Tensor], Tensor]) -> None:
        """Let `mean`, over processes, replace what was seen since the last `follow`, so that all follow the same."""
        if self.notes is not None and self.noted is not None:
            self.noted.copy_(mean(self.noted))
            self.notes.copy_(mean(self.notes))


def _mean_square(coefficients: Tensor) -> Float[Tensor, ""]:
    """In float32 at least: half precision overflows from |c| = 256."""
    c = coefficients.detach()
    return c.to(torch.promote_types(c.dtype, torch.float32)).square().mean()


def _quantiles(coefficients: Tensor) -> Float[Tensor, " octaves"]:
    """The |c| that is exceeded or met by each share 2⁻ʲ of the coefficients."""
    magnitudes = coefficients.abs().flatten()
    largest = magnitudes[:: max(1, len(magnitudes) // SAMPLE)].sort(descending=True).values
    places = [max(0, math.ceil(len(largest) * 2.0**-octave) - 1) for octave in range(OCTAVES)]
    return torch.stack([largest[place] for place in places])  # a list as an index would be sent to the GPU


def _follow(running: Tensor, now: Tensor) -> None:
    """`now` is not a number where nothing was seen, or where a step was skipped because its numbers overflowed."""
    moved = torch.where(running == 0, now, running.lerp(now, PACE))
    running.copy_(torch.where(now.isfinite(), moved, running))
