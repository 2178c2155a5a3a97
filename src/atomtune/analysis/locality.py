"""Locality: how much of a picture, or of a text, does a map cover?

    p_n = |w_n| / Σ|w|        coverage = exp(−Σ_n p_n log p_n) / N

The exponential of a distribution's entropy is the number of places it takes up: one token of N gives 1/N, all of them
equally 1.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from atomtune.errors import UserError
from atomtune.tracing import LayerTrace


def coverage(maps: Float[Tensor, "*batch tokens"]) -> Float[Tensor, "*batch"]:
    """Effective share of the tokens a map covers, in [1/N, 1]; not a number for a map of zeros."""
    weights = maps.abs().double()
    shares = weights / weights.sum(-1, keepdim=True)
    return torch.exp(torch.special.entr(shares).sum(-1)) / maps.shape[-1]


def magnitude_maps(layer: LayerTrace) -> Float[Tensor, "samples tokens atoms"]:
    """Mean of |s_m| over the timesteps, at every token of every sample: where each atom of a layer acts.

    Raises `UserError` when the trace did not keep the codes.
    """
    if not layer.codes:
        raise UserError("this trace kept no codes: use trace(model, codes=True).")
    samples = max(call.first_sample + call.shape[0] for call in layer.codes)
    summed, calls = torch.zeros(samples, *layer.codes[0].shape[1:]), torch.zeros(samples, 1, 1)
    for call in layer.codes:
        rows = slice(call.first_sample, call.first_sample + call.shape[0])
        summed[rows].view(-1).index_add_(0, call.indices.long().cpu(), call.values.abs().float().cpu())
        calls[rows] += 1
    return summed / calls
