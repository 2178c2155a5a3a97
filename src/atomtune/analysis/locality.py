"""Locality: how much of an image, or of a text, a map covers.

    p_n = |w_n| / Σ|w|        coverage = exp(−Σ_n p_n log p_n) / N

The exponential of a distribution's entropy is its effective number of places: a map on one token of N has coverage
1/N, and a map that is equal on all tokens has 1.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def coverage(maps: Float[Tensor, "*batch tokens"]) -> Float[Tensor, "*batch"]:
    """Effective share of the tokens a map covers, in [1/N, 1]; not a number for a map of zeros."""
    weights = maps.abs().double()
    shares = weights / weights.sum(-1, keepdim=True)
    return torch.exp(torch.special.entr(shares).sum(-1)) / maps.shape[-1]
