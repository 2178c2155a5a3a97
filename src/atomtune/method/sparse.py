"""Products with codes of which k in M are not zero, without the zeros.

    combine          Σ_j s_j d_i(j)      k rows of D a token instead of M
    coefficients_at  x · w_i(j)          forward all M, as only they tell which are the largest; backward k a token

with i [*batch, k] the places of the codes. The first is exactly `codes @ D`, and both have its gradients.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

WORTHWHILE = {"cpu": 8, "cuda": 128}
"""M/k from which this is faster than the products with all M. On a CPU measured (`python -m benchmarks crossover`; some
processors change at 12); on a GPU a careful guess, because the products with all M cost it little."""
MOST_AT_ONCE = 1024
"""k up to which this is faster, whatever M is: with more, the rows of a token no longer fit into a CPU's cache."""


def is_worthwhile(num_atoms: int, k: int, device: torch.device) -> bool:
    """Whether the products without the zeros are the faster ones."""
    return k <= MOST_AT_ONCE and num_atoms >= k * WORTHWHILE.get(device.type, WORTHWHILE["cuda"])


def combine(
    codes: Float[Tensor, "*batch k"], index: Int[Tensor, "*batch k"], atoms: Float[Tensor, "atoms out"]
) -> Float[Tensor, "*batch out"]:
    """Σ_j codes[..., j] · atoms[index[..., j]]."""
    flat = F.embedding_bag(index.flatten(0, -2), atoms, per_sample_weights=codes.flatten(0, -2), mode="sum")
    return flat.view(*codes.shape[:-1], -1)


def coefficients_at(
    x: Float[Tensor, "*batch width"],
    weight: Float[Tensor, "atoms width"],
    places: Callable[[Float[Tensor, "*batch atoms"]], Int[Tensor, "*batch k"]],
) -> tuple[Float[Tensor, "*batch k"], Int[Tensor, "*batch k"]]:
    """c = x · weightᵀ at the places that `places` chooses when it has seen all of c, and these places."""
    with torch.no_grad():
        coefficients = F.linear(x, weight)
        index = places(coefficients)
        chosen = coefficients.gather(-1, index)
    return _CoefficientsAt.apply(x, weight, chosen, index), index  # pyright: ignore[reportReturnType]


class _CoefficientsAt(torch.autograd.Function):
    """`chosen`, as a function of x and weight: ∂/∂x = Σ_j g_j w_i(j), ∂/∂w_m = Σ over the places of m of g x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, chosen: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, index)
        return chosen.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, weight, index = ctx.saved_tensors  # of one precision; autocast may have made the gradient's another
        wanted: Tensor = weight.detach().requires_grad_(ctx.needs_input_grad[1])
        with torch.enable_grad():
            of_x = combine(gradients[0].to(weight.dtype), index, wanted)
        # As a function of the weight, what is x's gradient has at x the gradient that the weight needs.
        of_weight = torch.autograd.grad(of_x, wanted, x)[0] if ctx.needs_input_grad[1] else None
        return of_x.detach(), of_weight, None, None
