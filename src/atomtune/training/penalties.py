"""Terms that can be added to the loss of atoms, and the annealing of their density.

    l1               (1/LN) Σ ‖s‖₁                      eq. 5: over N tokens of L layers, what multiplies D
    orthogonality    (1/L) Σ (1/M) Σ_{i≠j} cos²(d_i, d_j)
    density          (1/L) Σ (ρ̂/ρ − 1)²                 ρ̂ = mean of H(c − λ), straight-through gradient to λ (jumprelu)
    annealing        ρ_t = ρ_0 (ρ/ρ_0)^min(1, 2t/T)

Orthogonality is the paper's A.1. It makes atoms less alike. It does not make eq. 16 exact, which needs atoms that no
token uses together, not orthogonal atoms (docs/results/paper.md). More atoms than channels cannot all be orthogonal:
the least value of the sum is then M/C_o − 1. Cosines are used, because products would penalise lengths too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from atomtune.method.dictionary import SparseDictionary
from atomtune.method.sigma import JumpReLU
from atomtune.training.config import CustomizeConfig


def l1(codes: Float[Tensor, "*batch atoms"]) -> Float[Tensor, ""]:
    """‖s‖₁ of a token, its mean over tokens."""
    return _wide(codes).abs().sum(-1).mean()


def orthogonality(atoms: Float[Tensor, "atoms out"]) -> Float[Tensor, ""]:
    """(1/M) Σ_{i≠j} cos²(d_i, d_j); atoms that are still zero have no direction and count as orthogonal."""
    directions = F.normalize(_wide(atoms), dim=-1)
    cosines = directions @ directions.T
    return (cosines - torch.diag(cosines.diagonal())).square().sum() / len(atoms)


def density_error(measured: Float[Tensor, "*layers"], density: float) -> Float[Tensor, "*layers"]:
    """(ρ̂/ρ − 1)², ρ̂ the mean of what fires (`JumpReLU.firing`); its gradient goes to λ alone."""
    return (measured / density - 1).square()


def _wide(tensor: Tensor) -> Tensor:
    """In float32 at least, in which sums over tokens neither overflow nor lose small terms."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def annealed(density: float, start: float | None, progress: float) -> float:
    """ρ_t when a share `progress` of the run is done."""
    return density if start is None else start * (density / start) ** min(1.0, 2 * progress)


class Penalties:
    """The weighted sum of a run's penalties, over the dictionaries of its adapter; `mean` is that over processes."""

    def __init__(
        self,
        config: CustomizeConfig,
        dictionaries: Sequence[SparseDictionary],
        mean: Callable[[Tensor], Tensor] = torch.clone,
    ) -> None:
        self.config, self.dictionaries, self._mean = config, dictionaries, mean
        self._norms: list[Tensor] = []
        self._densities: list[Tensor] = []

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Collect the penalties that need codes or coefficients, while the model runs inside the block."""
        self._norms, self._densities, hooks = [], [], []
        for dictionary in self.dictionaries:
            if self.config.l1:
                hooks.append(dictionary.decoder.register_forward_pre_hook(self._saw_codes))
            if self.config.density_penalty and isinstance(dictionary.sigma, JumpReLU):
                hooks.append(dictionary.sigma.register_forward_hook(self._saw_coefficients))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _saw_codes(self, _module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._norms.append(l1(inputs[0]))

    def _saw_coefficients(self, sigma: Any, inputs: tuple[Tensor, ...], _codes: Tensor) -> None:
        # Detached: the density should move λ, and not the coefficients that are near λ.
        self._densities.append(sigma.firing(_wide(inputs[0].detach())).mean())

    def total(self, share: float = 1.0) -> Tensor | float:
        """The sum of all penalties for the model's last run. Zero if there are none.

        `share` is the number of images of that run over the mean number of all processes: the mean of the totals over
        processes is then the total of one process with all images, and so is its gradient.
        """
        terms = [share * self.config.l1 * norm for norm in self._norms]
        if self._densities:
            own = share * torch.stack(self._densities)
            measured = own + (self._mean(own.detach()) - own.detach())  # of all, with the gradient of the own part
            terms.append(self.config.density_penalty * density_error(measured, self.config.density).sum())
        if self.config.orthogonality:
            weight = self.config.orthogonality
            terms = terms + [weight * orthogonality(d.decoder.weight) for d in self.dictionaries]
        self._norms, self._densities = [], []
        return torch.stack(terms).sum() / len(self.dictionaries) if terms else 0.0
