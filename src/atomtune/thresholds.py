"""Threshold: σ that compares each coefficient with a λ, and where that λ comes from.

    soft        sign(c) · max(|c| − λ, 0)    λ is given
    relu        max(c − λ, 0)                λ is given
    jumprelu    c · H(c − λ)                 λ = e^θ, one θ for each atom, learned (Rajamanoharan et al. 2024)
    batch_topk  c where |c| ≥ λ              training: λ leaves k·N of the batch's coefficients; afterwards: the λ that
                                             did so in training, whatever else is in the batch (Bussmann et al. 2024)

A given or learned λ may be in units of the layer's running activation scale, λ · r with r the root mean square of c, so
that growing encoders do not outgrow it. What is estimated while training is saved with the adapter, a row per atom, so
that pruning and concatenation take it along.
"""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from atomtune.coding import batch_threshold, hard_threshold, jump_relu, relu_threshold, soft_threshold

OCTAVES = 11
"""`levels` has λ at the densities 1, 1/2, 1/4, …, 2⁻¹⁰; the λ of those between is interpolated over log ρ."""
PACE = 0.1
"""How much of a running estimate one batch replaces."""
BANDWIDTH = 0.25
"""ε of jumprelu, in units of λ."""
SAMPLE = 2**14
"""Coefficients of a batch from which `levels` is estimated."""


class Threshold(nn.Module):
    """σ by threshold. In training mode it also follows the coefficients' size; in eval mode it is a fixed function.

    Args:
        num_atoms: M.
        activation: "soft", "relu", "jumprelu" or "batch_topk".
        threshold: λ; of jumprelu, its start; not used by batch_topk.
        units: of λ: "absolute", or "scale", times the running root mean square of the layer's coefficients.
    """

    level: Tensor
    levels: Tensor | None
    spread: Tensor | None

    def __init__(self, num_atoms: int, activation: str, threshold: float = 0.1, units: str = "absolute") -> None:
        super().__init__()
        self.activation, self.threshold = activation, threshold
        self.k, self.sizes = [num_atoms], [num_atoms]
        batch = activation == "batch_topk"
        self.log_threshold = None
        if activation == "jumprelu":
            self.log_threshold = nn.Parameter(torch.full((num_atoms,), math.log(threshold)))
        self.register_buffer("levels", torch.zeros(num_atoms, OCTAVES) if batch else None)
        self.register_buffer("level", torch.zeros(num_atoms) if batch else None, persistent=False)
        self.register_buffer("spread", torch.zeros(num_atoms) if units == "scale" and not batch else None)

    @property
    def value(self) -> float | Float[Tensor, "#atoms"]:
        """λ as it is compared with the coefficients."""
        if self.activation == "batch_topk":
            return self.level
        own = self.threshold if self.log_threshold is None else self.log_threshold.exp()
        return own if self.spread is None else own * self.spread

    def forward(self, coefficients: Float[Tensor, "*batch atoms"]) -> Float[Tensor, "*batch atoms"]:
        if self.training:
            self._observe(coefficients.detach())
        if self.activation == "batch_topk":
            return hard_threshold(coefficients, self._of_batch(coefficients) if self.training else self.level)
        if self.activation == "soft":
            return soft_threshold(coefficients, self.value)
        if self.activation == "relu":
            return relu_threshold(coefficients, self.value)
        λ = torch.as_tensor(self.value)
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
    def _observe(self, coefficients: Tensor) -> None:
        """Move the running estimates towards this batch; the first one is taken as it is."""
        if self.spread is not None:
            _follow(self.spread, coefficients.square().mean().sqrt().expand(len(self.spread)))
        if self.levels is not None:
            groups = coefficients.split(self.sizes, dim=-1)
            now = [_quantiles(c).expand(size, OCTAVES) for c, size in zip(groups, self.sizes) if size]
            _follow(self.levels, torch.cat(now))
            self.aim(self.k, self.sizes)


def _quantiles(coefficients: Tensor) -> Float[Tensor, " octaves"]:
    """The |c| that is exceeded or met by each share 2⁻ʲ of the coefficients."""
    magnitudes = coefficients.abs().flatten()
    largest = magnitudes[:: max(1, len(magnitudes) // SAMPLE)].sort(descending=True).values
    places = [max(0, math.ceil(len(largest) * 2.0**-octave) - 1) for octave in range(OCTAVES)]
    return torch.stack([largest[place] for place in places])  # a list as an index would be sent to the GPU


def _follow(running: Tensor, now: Tensor) -> None:
    now = now.to(running)
    running.copy_(torch.where(running == 0, now, running.lerp(now, PACE)))
