"""Matched filters: columns of W_s that answer to what a subject's tokens have and other tokens do not.

    w_m = (C + εI)⁻¹ x_m        C = mean of x xᵀ over other tokens, x_m one of the subject's

Along w_m the token x_m stands out most from the others, for their mean square: Fisher's linear discriminant, a matched
filter against colored noise. x_m is drawn with a chance in proportion to x_mᵀ (C + εI)⁻¹ x_m, by how little it is like
the others (its squared Mahalanobis distance). An atom that starts there is above a floor that was measured on the other
tokens (`method.floor`); one that starts at random answers to both alike, and such a floor silences both.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

RIDGE = 0.1
"""ε, of the mean variance of the other tokens."""


class Moment:
    """C of tokens that come in parts."""

    def __init__(self) -> None:
        self.count, self._total = 0, None

    def add(self, tokens: Float[Tensor, "tokens width"]) -> None:
        with torch.autocast(tokens.device.type, enabled=False):
            product = tokens.T.float() @ tokens.float()
        self._total = product if self._total is None else self._total.add_(product)
        self.count += len(tokens)

    @property
    def mean(self) -> Float[Tensor, "width width"]:
        assert self._total is not None  # something was added
        return self._total / self.count


def matched_filters(
    own: Float[Tensor, "tokens width"], moment: Float[Tensor, "width width"], count: int, generator: torch.Generator
) -> Float[Tensor, "count width"]:
    """`count` different matched filters of length 1 for tokens of `own` against others whose C is `moment`, in random
    order; `generator` is on the CPU.

    Beyond as many as there are different tokens, as of short texts, they are random mixtures of the filters.
    """
    own, regular = _different(own), moment.clone()
    regular.diagonal().add_(RIDGE * moment.diagonal().mean())
    filters = torch.linalg.solve(regular, own.T).T
    novelty = (own * filters).sum(1).cpu().double().clamp(min=torch.finfo(torch.float32).tiny)
    filters = F.normalize(filters, dim=1)
    if count > len(filters):
        shares = torch.randn(count - len(filters), len(filters), generator=generator) * novelty.sqrt().float()
        filters = torch.cat([filters, F.normalize(shares.to(filters) @ filters, dim=1)])
        chosen = torch.randperm(count, generator=generator)
    else:
        chosen = torch.multinomial(novelty, count, generator=generator)
    return filters[chosen.to(filters.device)]


def _different(tokens: Float[Tensor, "tokens width"]) -> Float[Tensor, "different width"]:
    """The first of all tokens that are the same but for rounding."""
    rounded = (tokens / tokens.square().mean().sqrt() * 1e3).round()
    _, which = torch.unique(rounded, dim=0, return_inverse=True)
    places = torch.arange(len(tokens), device=tokens.device)
    first = torch.full((int(which.max()) + 1,), len(tokens), device=tokens.device)
    return tokens[first.scatter_reduce(0, which, places, "amin").sort().values]
