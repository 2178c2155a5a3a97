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
    """`count` matched filters of length 1 for tokens of `own` against others whose C is `moment`; `generator` is on
    the CPU, and chooses the tokens."""
    ridge = RIDGE * moment.diagonal().mean() * torch.eye(len(moment), dtype=moment.dtype, device=moment.device)
    filters = torch.linalg.solve(moment + ridge, own.T).T
    novelty = (own * filters).sum(1).clamp(min=0).double().cpu()
    chosen = torch.multinomial(novelty, count, replacement=count > int((novelty > 0).sum()), generator=generator)
    return torch.nn.functional.normalize(filters[chosen.to(filters.device)], dim=1)
