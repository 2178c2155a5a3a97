"""Sparse coding as plain functions: the nonlinearities σ that decide which atoms a token uses, and solvers for eq. 5.

    soft        σ(c) = sign(c) · max(|c| − λ, 0)
    relu        σ(c) = max(c − λ, 0)
    hard        σ(c) = c where |c| ≥ λ, 0 elsewhere
    jumprelu    σ(c) = c · H(c − λ), H the step function, λ learned through a pseudo-derivative
    top-k       σ(c) = c where |c| is among the token's k largest, 0 elsewhere;  k = max(1, round(ρM))
    batch top-k hard, λ the smallest of the k·N largest |c| of all N tokens of a batch: k a token on average

    eq. 5   min over s of  ½‖x − s D‖² + λ‖s‖₁

Functions take and return tensors, and do not depend on modules, transformers or images.
"""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from atomtune.errors import UserError


def atoms_per_token(num_atoms: int, density: float) -> int:
    """k = max(1, round(ρM)): how many of M atoms one token may use at density ρ.

    Raises `UserError` when `density` is outside (0, 1].
    """
    if not 0 < density <= 1:
        hint = f" Did you mean {density / 100:g} ({density:g} %)?" if 1 < density <= 100 else ""
        raise UserError(f"density must be in (0, 1], got {density:g}.{hint}")
    return max(1, round(density * num_atoms))


def soft_threshold(
    coefficients: Float[Tensor, "*batch atoms"], threshold: float | Tensor
) -> Float[Tensor, "*batch atoms"]:
    """σ(c) = sign(c) · max(|c| − λ, 0). The gradient is 1 outside [−λ, λ] and 0 inside."""
    return coefficients - coefficients.clamp(-threshold, threshold)  # pyright: ignore[reportArgumentType, reportCallIssue]


def relu_threshold(
    coefficients: Float[Tensor, "*batch atoms"], threshold: float | Tensor
) -> Float[Tensor, "*batch atoms"]:
    """σ(c) = max(c − λ, 0). Codes are never negative."""
    return torch.relu(coefficients - threshold)


def hard_threshold(
    coefficients: Float[Tensor, "*batch atoms"], threshold: float | Tensor
) -> Float[Tensor, "*batch atoms"]:
    """σ(c) = c where |c| ≥ λ, 0 elsewhere; gradient flows to the kept entries only."""
    return coefficients * (coefficients.abs() >= threshold)


def batch_threshold(coefficients: Float[Tensor, "*batch atoms"], k: int) -> Float[Tensor, ""]:
    """λ of batch top-k: the smallest of the k·N largest |c| over all N tokens, without gradient."""
    magnitudes = coefficients.detach().abs().flatten()
    kept = k * (magnitudes.numel() // coefficients.shape[-1])
    return magnitudes.kthvalue(magnitudes.numel() - kept + 1).values


def step(
    coefficients: Float[Tensor, "*batch atoms"], threshold: Float[Tensor, "#atoms"], bandwidth: float | Tensor
) -> Float[Tensor, "*batch atoms"]:
    """H(c − λ): 1 where an atom fires, with the straight-through ∂H/∂λ := −rect((c − λ)/ε)/ε and no gradient to c.

    ε is `bandwidth`, rect is 1 on (−½, ½): only coefficients near λ have an effect on λ (Rajamanoharan et al. 2024).
    """
    c = coefficients.detach()
    near = ((c - threshold).abs() < bandwidth / 2).to(c.dtype).detach()
    return (c > threshold).to(c.dtype) + near / bandwidth * (threshold.detach() - threshold)


def jump_relu(
    coefficients: Float[Tensor, "*batch atoms"], threshold: Float[Tensor, "#atoms"], bandwidth: float | Tensor
) -> Float[Tensor, "*batch atoms"]:
    """σ(c) = c · H(c − λ), with ∂σ/∂c = H(c − λ) and the straight-through ∂σ/∂λ := −(λ/ε) rect((c − λ)/ε)."""
    fires = (coefficients > threshold).to(coefficients.dtype)
    if not threshold.requires_grad:
        return coefficients * fires
    return coefficients * fires + threshold.detach() * (step(coefficients, threshold, bandwidth) - fires)


def top_k(
    coefficients: Float[Tensor, "*batch atoms"], k: int | Tensor, k_max: int | None = None
) -> Float[Tensor, "*batch atoms"]:
    """Keep each token's k largest coefficients by magnitude, signs kept; gradient flows to the kept entries only.

    An integer in a compiled graph is a constant, so changing it would compile again. Pass `k` as a tensor instead,
    with the integer `k_max` it never exceeds: k_max entries are selected, and those of rank k and beyond are dropped.
    """
    index = largest(coefficients, int(k) if k_max is None else k_max)
    kept = first(coefficients.gather(-1, index), k) if isinstance(k, Tensor) else coefficients.gather(-1, index)
    return torch.zeros_like(coefficients).scatter(-1, index, kept)


def largest(coefficients: Float[Tensor, "*batch atoms"], k: int, ordered: bool = True) -> Int[Tensor, "*batch k"]:
    """The places of each token's k largest |c|, largest first if they are `ordered`, which takes longer."""
    magnitudes = coefficients.detach().abs()
    if not ordered and _numpy_is_faster(magnitudes, k):
        bits, num_atoms = magnitudes.view(torch.int32).numpy(), magnitudes.shape[-1]  # in the order of the numbers
        least = np.partition(bits, -k, axis=-1)[..., -k, None]
        places = np.flatnonzero(bits >= least)
        if places.size * num_atoms == bits.size * k:  # otherwise some are equal
            return torch.from_numpy(places).remainder(num_atoms).view(*magnitudes.shape[:-1], k)
    return magnitudes.topk(k, sorted=ordered).indices


def _numpy_is_faster(magnitudes: Float[Tensor, "*batch atoms"], k: int) -> bool:
    """numpy finds the k-th largest of few numbers with vector instructions, five times faster than torch on a CPU; of
    64 times as many as k torch is the faster one. Only of numbers that are really there, and not traced."""
    return (
        type(magnitudes) is Tensor
        and magnitudes.device.type == "cpu"
        and magnitudes.dtype == torch.float32
        and 0 < k < magnitudes.shape[-1] < 64 * k
        and not (torch.jit.is_tracing() or torch._C._are_functorch_transforms_active())
    )


def first(codes: Float[Tensor, "*batch most"], k: Tensor) -> Float[Tensor, "*batch most"]:
    """The first k of each token's codes, and zeros in the place of the others."""
    return codes * (torch.arange(codes.shape[-1], device=k.device) < k)


def ista(
    x: Float[Tensor, "*batch width"], dictionary: Float[Tensor, "atoms width"], threshold: float, steps: int = 100
) -> Float[Tensor, "*batch atoms"]:
    """Solve eq. 5 by iterative soft thresholding: s ← soft(s + (x − sD)Dᵀ/L, λ/L), L = ‖D‖². Error falls as 1/steps."""
    lipschitz = torch.linalg.matrix_norm(dictionary, ord=2) ** 2
    codes = x.new_zeros(*x.shape[:-1], dictionary.shape[0])
    for _ in range(steps):
        codes = _proximal_step(x, dictionary, codes, threshold, lipschitz)
    return codes


def fista(
    x: Float[Tensor, "*batch width"], dictionary: Float[Tensor, "atoms width"], threshold: float, steps: int = 100
) -> Float[Tensor, "*batch atoms"]:
    """Solve eq. 5 as `ista` does, with Nesterov's momentum. Error falls as 1/steps²."""
    lipschitz = torch.linalg.matrix_norm(dictionary, ord=2) ** 2
    codes = ahead = x.new_zeros(*x.shape[:-1], dictionary.shape[0])
    t = 1.0
    for _ in range(steps):
        previous, codes = codes, _proximal_step(x, dictionary, ahead, threshold, lipschitz)
        t_previous, t = t, (1 + (1 + 4 * t * t) ** 0.5) / 2
        ahead = codes + (t_previous - 1) / t * (codes - previous)
    return codes


def _proximal_step(x: Tensor, dictionary: Tensor, codes: Tensor, threshold: float, lipschitz: Tensor) -> Tensor:
    residual = x - codes @ dictionary
    return soft_threshold(codes + residual @ dictionary.T / lipschitz, threshold / lipschitz)
