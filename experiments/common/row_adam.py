"""RowAdam: Adam whose second moment is shared by all entries of an atom.

    m ← β₁ m + (1−β₁) g          v_a ← β₂ v_a + (1−β₂) mean over atom a of g²          w ← w − η m̂ / (√v̂_a + ε)

Ordinary Adam divides every entry by its own √v̂, which turns the update out of the span of the gradients. With one √v̂
per atom the update is a combination of gradients, so atoms that start at zero stay in the span of the errors they
were trained on, as they would under plain gradient descent.
"""

from collections.abc import Iterable

import torch
from torch import nn


class RowAdam(torch.optim.Optimizer):
    """Adam with one second moment per atom.

    Args:
        params: the atoms, one a row.
        lr: η.
        betas, eps: as in `torch.optim.Adam`.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self, closure=None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for weight in group["params"]:
                state = self.state[weight]
                if not state:
                    state.update(step=0, m=torch.zeros_like(weight), v=0.0)
                state["step"] += 1
                state["m"].lerp_(weight.grad, 1 - beta1)
                state["v"] = beta2 * state["v"] + (1 - beta2) * weight.grad.square().mean(-1, keepdim=True)
                m = state["m"] / (1 - beta1 ** state["step"])
                v = state["v"] / (1 - beta2 ** state["step"])
                weight -= group["lr"] * m / (v.sqrt() + group["eps"])
