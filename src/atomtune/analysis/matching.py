"""Matching: do two runs learn the same atoms?

What atom m adds to its layer's output over the tokens of some inputs is the matrix s_m d_mᵀ. The likeness of two atoms
is the cosine between these matrices, which is a product:

    likeness(a, b) = cos(s_a, s_b) · cos(d_a, d_b)         the same places and the same direction: 1

so reversing the sign of both code and direction changes nothing. Each atom of the smaller adapter is matched with one
atom of the other, none twice, so that the sum of likenesses is largest (Hungarian assignment). Both adapters must be
run on the same inputs; "by chance" is the likeness with the directions d_b in a random order.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize


def likeness(
    codes_a: Float[Tensor, "tokens a"],
    directions_a: Float[Tensor, "a out"],
    codes_b: Float[Tensor, "tokens b"],
    directions_b: Float[Tensor, "b out"],
) -> Float[Tensor, "a b"]:
    """cos(s_a, s_b) · cos(d_a, d_b) of every pair, in [-1, 1]; 0 for an atom that never fires. On the codes' device:
    those of a trace (`LayerTrace.every_token`) are on the CPU, wherever the model and its directions are."""
    places = normalize(codes_a, dim=0).T @ normalize(codes_b, dim=0)
    directions_a, directions_b = directions_a.to(places), directions_b.to(places)
    return places * (normalize(directions_a, dim=1) @ normalize(directions_b, dim=1).T)


def match(likenesses: Float[Tensor, "a b"]) -> tuple[Int[Tensor, " pairs"], Int[Tensor, " pairs"]]:
    """Rows and columns of the pairs whose likenesses have the largest sum, every row and column in one pair at most."""
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(likenesses.double().cpu().numpy(), maximize=True)
    return torch.from_numpy(rows), torch.from_numpy(columns)
