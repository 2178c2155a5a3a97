"""σ: from coefficients to sparse codes. One class for each σ, with one interface and one registry.

    topk        c where |c| is among the token's k largest
    batch_topk  c where |c| ≥ λ              training: the λ that keeps k·N of the batch's coefficients; afterwards: the
                                             running estimate of this λ, for any batch (Bussmann et al. 2024)
    soft        sign(c) · max(|c| − λ, 0)    λ is given
    relu        max(c − λ, 0)                λ is given
    jumprelu    c · H(c − λ)                 λ = e^θ, one θ for each atom, learned (Rajamanoharan et al. 2024)

A given or learned λ may be in units of the layer's running activation scale, λ · r with r the root mean square of c, so
that λ grows with the coefficients. Running estimates (`method.estimates`) are saved with the adapter, one row for each
atom, so that pruning and concatenation keep them.

A new σ is one subclass of `Sigma` and one line in `SIGMAS`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from atomtune.errors import UserError
from atomtune.method.coding import (
    atoms_per_token,
    batch_threshold,
    first,
    hard_threshold,
    jump_relu,
    largest,
    relu_threshold,
    soft_threshold,
    step,
)
from atomtune.method.estimates import OCTAVES, Estimates, mean_square, move, quantiles
from atomtune.method.sparse import is_worthwhile

BANDWIDTH = 0.25
"""ε of jumprelu, in units of λ."""


@dataclass(frozen=True)
class SigmaConfig:
    """Which σ, and its dials. Raises `UserError` when one is out of range.

    Args:
        activation: "topk", "batch_topk", "soft", "relu" or "jumprelu".
        density: ρ, the share of the atoms one token may use ("batch_topk": on average): k = max(1, round(ρM)). A
            sequence has one for each group of atoms.
        threshold: λ of soft and relu, and the first λ of jumprelu.
        threshold_units: units of λ: those of the coefficients ("absolute"), or the running root mean square of the
            layer's coefficients ("scale").
    """

    activation: str = "topk"
    density: float | Sequence[float] = 0.04
    threshold: float = 0.1
    threshold_units: str = "absolute"

    def __post_init__(self) -> None:
        if self.activation not in SIGMAS:
            raise UserError(f"activation must be one of {', '.join(SIGMAS)}, got {self.activation!r}.")
        for density in self.densities:
            atoms_per_token(1, density)
        if self.threshold < 0 or (self.kind.learned and self.threshold == 0):
            least = f"above 0, where {self.activation}'s λ starts" if self.kind.learned else "0 or more"
            raise UserError(f"threshold must be {least}, got {self.threshold:g}.")
        if self.threshold_units not in ("absolute", "scale"):
            raise UserError(f"threshold_units must be absolute or scale, got {self.threshold_units!r}.")

    @property
    def densities(self) -> list[float]:
        """ρ of each group."""
        return [self.density] if isinstance(self.density, int | float) else list(self.density)

    @property
    def kind(self) -> type[Sigma]:
        """The class of this σ."""
        return SIGMAS[self.activation]

    def build(self, num_atoms: int) -> Sigma:
        """The σ of a layer with so many atoms."""
        return self.kind(num_atoms, self)


class Sigma(Estimates):
    """σ of a layer with M atoms.

    Atoms belong to groups (the adapters that were concatenated). Each group has its own k, the number of its atoms that
    one token may use. A forward pass in training mode with gradients also records values for the running estimates, if
    this σ has any; any other forward pass is a fixed function.

    Args:
        num_atoms: M.
        config: the dials.
    """

    dial: ClassVar[str] = "threshold"
    """The dial for sparsity: "threshold", fixed after training, or "density", which a user may change at any time."""
    learned: ClassVar[bool] = False
    """Whether λ is a parameter that trains."""
    threshold_is_fixed: ClassVar[bool] = False
    """Whether this σ has a λ that is an option, and not a tensor that is saved with the atoms."""

    k: Tensor

    def __init__(self, num_atoms: int, config: SigmaConfig) -> None:
        super().__init__()
        self.activation = config.activation
        self.group_sizes = [num_atoms] + [0] * (len(config.densities) - 1)
        # k is a tensor too, so that a change of k does not compile again; then k_max entries are selected.
        self.k_now = self.k_trained = self.k_max = [atoms_per_token(num_atoms, ρ) for ρ in config.densities]
        self.register_buffer("k", torch.tensor(self.k_now))
        self.start_estimates(None, None)

    def forward(self, coefficients: Float[Tensor, "*batch atoms"]) -> Float[Tensor, "*batch atoms"]:
        raise NotImplementedError

    def is_worthwhile(self, device: torch.device) -> bool:
        """Whether products with the chosen codes alone are faster there than products with all M: see `method.sparse`.
        Only of a σ that chooses the same number for each token."""
        return False

    def places(self, coefficients: Float[Tensor, "*batch atoms"]) -> Int[Tensor, "*batch most"]:
        """Where the chosen coefficients of each token are, if this is ever worthwhile."""
        raise NotImplementedError

    def at(self, codes: Float[Tensor, "*batch most"]) -> Float[Tensor, "*batch most"]:
        """σ(c) at `places`, given c there."""
        raise NotImplementedError

    def set_density(self, density: float) -> None:
        """Let each token use k = max(1, round(ρM)) atoms, of each group of M. A compiled model compiles again only
        beyond its largest k, with "batch_topk" never. Raises `UserError` if density is not the dial."""
        if self.dial != "density":
            raise UserError(f"density belongs to top-k; this adapter uses {self.activation}, whose dial is threshold.")
        k = [min(size, atoms_per_token(size, density)) for size in self.group_sizes]
        self.k_max = [max(most, now) for most, now in zip(self.k_max, k)]
        self._set_k(k)

    def reset_density(self) -> None:
        """Undo `set_density`."""
        self._set_k(self.k_trained)

    @property
    def density(self) -> float:
        """ρ = k/M."""
        return sum(self.k_now) / sum(self.group_sizes)

    @property
    def density_changed(self) -> bool:
        """Whether a token may use another number of atoms than the adapter was trained, or saved, with."""
        return self.k_now != self.k_trained

    def _set_k(self, k: list[int]) -> None:
        """Let each token use k atoms of each group. Nothing is copied to or from a GPU, because annealing calls this in
        every step."""
        self.k_now = list(k)
        for own, now in zip(self.k, k):
            own.fill_(now)

    def set_group_sizes(self, group_sizes: list[int]) -> None:
        """Set the number of atoms of each group. No k may be larger than its group."""
        self.group_sizes = group_sizes
        if self.k.is_meta:  # it is about to be loaded
            return
        self.k_max = [min(most, size) for most, size in zip(self.k_max, group_sizes)]
        k = [min(own, size) for own, size in zip(self.k.tolist(), group_sizes)]
        if k != self.k_trained:
            self.k_trained = self.k_max = k
        self._set_k(k)

    def set_group_sizes_after_pruning(self, group_sizes: list[int]) -> None:
        """The same, after atoms were removed from all tensors. The codes of the others stay as they are."""
        self.set_group_sizes(group_sizes)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.set_group_sizes(self.group_sizes)


class TopK(Sigma):
    """c where |c| is among the token's k largest of its group, signs kept."""

    dial = "density"

    def forward(self, coefficients: Float[Tensor, "*batch atoms"]) -> Float[Tensor, "*batch atoms"]:
        index = self.places(coefficients)
        return torch.zeros_like(coefficients).scatter(-1, index, self.at(coefficients.gather(-1, index)))

    def places(self, coefficients: Float[Tensor, "*batch atoms"]) -> Int[Tensor, "*batch most"]:
        """Where the largest |c| of each token are, of each group; in a compiled model, where `at` drops some of them
        again, the largest first."""
        starts, index, ordered = 0, [], torch.compiler.is_compiling()
        for own, most in zip(coefficients.split(self.group_sizes, dim=-1), self._most):
            index.append(largest(own, most, ordered) + starts)
            starts += own.shape[-1]
        return torch.cat(index, dim=-1) if len(index) > 1 else index[0]

    def at(self, codes: Float[Tensor, "*batch most"]) -> Float[Tensor, "*batch most"]:
        """σ(c) there, given c there: the first k of each group are kept, which are all but in a compiled model."""
        if not torch.compiler.is_compiling():
            return codes
        if len(self.k_max) == 1:
            return first(codes, self.k[0])
        return torch.cat([first(own, k) for own, k in zip(codes.split(self._most, dim=-1), self.k)], dim=-1)

    @property
    def _most(self) -> list[int]:
        """How many are selected of each group: k, or in a compiled model k_max. A fresh adapter with several densities
        has all its atoms in the first group."""
        most = self.k_max if torch.compiler.is_compiling() else self.k_now
        return [min(size, own) for size, own in zip(self.group_sizes, most)]

    def is_worthwhile(self, device: torch.device) -> bool:
        return is_worthwhile(sum(self.group_sizes), sum(self._most), device)


class BatchTopK(Sigma):
    """c where |c| ≥ λ: in training, k a token on average over the batch; later, the estimated λ of training."""

    dial = "density"

    level: Tensor
    levels: Tensor

    def __init__(self, num_atoms: int, config: SigmaConfig) -> None:
        super().__init__(num_atoms, config)
        nothing = torch.zeros(num_atoms, dtype=torch.float32)
        self.register_buffer("levels", nothing[:, None].repeat(1, OCTAVES))
        self.register_buffer("level", nothing.clone(), persistent=False)
        self.start_estimates(nothing[:, None].repeat(1, OCTAVES), nothing.clone())

    def forward(self, coefficients: Float[Tensor, "*batch atoms"]) -> Float[Tensor, "*batch atoms"]:
        λ = self.level
        if self.training:
            k, sizes, groups = self.k_now, self.group_sizes, coefficients.split(self.group_sizes, dim=-1)
            λ = torch.cat([batch_threshold(c, k).expand(size) for c, k, size in zip(groups, k, sizes) if size])
            if self.observing:
                levels = [quantiles(c.detach()).expand(size, OCTAVES) for c, size in zip(groups, sizes) if size]
                self.observe(torch.cat(levels))
        return hard_threshold(coefficients, λ).to(coefficients.dtype)

    def _set_k(self, k: list[int]) -> None:
        super()._set_k(k)
        if sum(self.group_sizes) == len(self.levels):
            self.level.copy_(self._levels_at(self._octaves(self.group_sizes)[:, None])[:, 0])

    def _octaves(self, rows: list[int]) -> Float[Tensor, " atoms"]:
        """−log₂ ρ of each atom's group, for so many rows of each group."""
        # Made on the device: a copy to a GPU in every training step would make the CPU wait.
        new, k, sizes = self.levels.new_full, self.k_now, self.group_sizes
        each = zip(rows, k, sizes)
        return -torch.cat([new((n,), own / max(1, size), dtype=torch.float32) for n, own, size in each]).log2()

    def _levels_at(self, octaves: Float[Tensor, "atoms places"]) -> Float[Tensor, "atoms places"]:
        """λ between the estimates."""
        place = octaves.clamp(0, OCTAVES - 1)
        below = place.long().clamp(max=OCTAVES - 2)
        low, high = self.levels.gather(1, below), self.levels.gather(1, below + 1)
        return low.lerp(high, (place - below).to(low))

    @torch.no_grad()
    def set_group_sizes_after_pruning(self, group_sizes: list[int]) -> None:
        """`levels` belong to shares of the atoms that there were. They become those of the atoms that are left, so that
        λ at the present k stays the same."""
        λ, before = self.level.clone(), self._octaves(group_sizes)
        super().set_group_sizes_after_pruning(group_sizes)
        now = self._octaves(group_sizes)
        shifted = torch.arange(OCTAVES, device=now.device) + (before - now)[:, None]
        self.levels.copy_(self._levels_at(shifted))
        found = self._levels_at(now[:, None])
        self.levels.mul_(torch.where(found == 0, 1, λ[:, None] / found))  # what interpolating twice has changed
        self._set_k(self.k_now)

    @torch.no_grad()
    def update_estimates(self) -> None:
        move(self.levels, self.observed_sum / self.observed_count[:, None])  # pyright: ignore[reportOptionalSubscript, reportOptionalOperand]
        self._set_k(self.k_now)
        self.discard_observations()


class _Threshold(Sigma):
    """σ with a λ that is given or learned, in absolute units or in units of the layer's running scale."""

    spread: Tensor | None

    def __init__(self, num_atoms: int, config: SigmaConfig) -> None:
        super().__init__(num_atoms, config)
        self.threshold = config.threshold
        nothing = torch.zeros(num_atoms, dtype=torch.float32) if config.threshold_units == "scale" else None
        self.register_buffer("spread", nothing)
        self.start_estimates(*(None if nothing is None else nothing.clone() for _ in range(2)))

    @property
    def unscaled_threshold(self) -> float | Float[Tensor, " atoms"]:
        """λ before it is multiplied by the running scale."""
        return self.threshold

    @property
    def current_threshold(self) -> float | Float[Tensor, " atoms"]:
        """λ as it is compared with the coefficients, after training."""
        return self.unscaled_threshold if self.spread is None else self.unscaled_threshold * self.spread

    def threshold_for(self, coefficients: Float[Tensor, "*batch atoms"]) -> float | Float[Tensor, " atoms"]:
        """λ as it is compared with these coefficients: `current_threshold`, except in the first step of training, when
        there is no running scale yet and that of these coefficients is used."""
        if self.spread is None or not self.training:
            return self.current_threshold
        return self.unscaled_threshold * torch.where(self.spread == 0, mean_square(coefficients).sqrt(), self.spread)

    def forward(self, coefficients: Float[Tensor, "*batch atoms"]) -> Float[Tensor, "*batch atoms"]:
        if self.observing:
            self.observe(mean_square(coefficients))
        # λ has float32, and the coefficients may have fewer bits: the codes get the precision of the coefficients.
        return self.shrink(coefficients, self.threshold_for(coefficients)).to(coefficients.dtype)

    def shrink(self, coefficients: Tensor, λ: Any) -> Float[Tensor, "*batch atoms"]:
        """σ itself."""
        raise NotImplementedError

    @torch.no_grad()
    def update_estimates(self) -> None:
        if self.spread is not None:
            move(self.spread, (self.observed_sum / self.observed_count).sqrt())  # pyright: ignore[reportOperatorIssue, reportOptionalOperand]
            self.discard_observations()


class Soft(_Threshold):
    """sign(c) · max(|c| − λ, 0)."""

    threshold_is_fixed = True

    def shrink(self, coefficients: Tensor, λ: Any) -> Float[Tensor, "*batch atoms"]:
        return soft_threshold(coefficients, λ)


class ReLU(_Threshold):
    """max(c − λ, 0)."""

    threshold_is_fixed = True

    def shrink(self, coefficients: Tensor, λ: Any) -> Float[Tensor, "*batch atoms"]:
        return relu_threshold(coefficients, λ)


class JumpReLU(_Threshold):
    """c · H(c − λ), λ = e^θ with one θ for each atom, which trains."""

    learned = True

    def __init__(self, num_atoms: int, config: SigmaConfig) -> None:
        super().__init__(num_atoms, config)
        self.log_threshold = nn.Parameter(torch.full((num_atoms,), math.log(config.threshold), dtype=torch.float32))

    @property
    def unscaled_threshold(self) -> Float[Tensor, " atoms"]:
        return self.log_threshold.exp()

    def shrink(self, coefficients: Tensor, λ: Any) -> Float[Tensor, "*batch atoms"]:
        return jump_relu(coefficients, λ, BANDWIDTH * λ.detach())

    def firing(self, coefficients: Float[Tensor, "*batch atoms"]) -> Float[Tensor, "*batch atoms"]:
        """H(c − λ), with the straight-through gradient to λ."""
        λ: Any = self.threshold_for(coefficients)
        return step(coefficients, λ, BANDWIDTH * λ.detach())


SIGMAS: dict[str, type[Sigma]] = {
    "topk": TopK,
    "batch_topk": BatchTopK,
    "soft": Soft,
    "relu": ReLU,
    "jumprelu": JumpReLU,
}
"""Every σ by its name, the value of `activation`."""
