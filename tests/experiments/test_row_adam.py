"""RowAdam against its formula, and the property it exists for."""

import torch
from torch import nn
from torch.testing import assert_close

from experiments.common.row_adam import RowAdam


def test_steps_follow_the_formula():
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(4, 3, dtype=torch.float64, generator=generator)
    weight = nn.Parameter(w.clone())
    optimizer = RowAdam([weight], lr=0.1, betas=(0.8, 0.9), eps=1e-6)
    m, v = torch.zeros(4, 3, dtype=torch.float64), torch.zeros(4, 1, dtype=torch.float64)
    for t in range(1, 6):
        g = torch.randn(4, 3, dtype=torch.float64, generator=generator)
        weight.grad = g.clone()
        optimizer.step()
        m = 0.8 * m + 0.2 * g
        v = 0.9 * v + 0.1 * (g**2).mean(1, keepdim=True)
        w = w - 0.1 * (m / (1 - 0.8**t)) / ((v / (1 - 0.9**t)).sqrt() + 1e-6)
        assert_close(weight.detach(), w, atol=1e-10, rtol=0)


def test_atoms_stay_in_the_span_of_their_gradients_where_adam_leaves_it():
    generator = torch.Generator().manual_seed(0)
    span = torch.linalg.qr(torch.randn(10, 3, dtype=torch.float64, generator=generator)).Q.T  # [3, 10]
    outside = {}
    for kind in (RowAdam, torch.optim.Adam):
        atoms = nn.Parameter(torch.zeros(5, 10, dtype=torch.float64))  # a row is an atom
        optimizer = kind([atoms], lr=0.1)
        for _ in range(20):
            atoms.grad = torch.randn(5, 3, dtype=torch.float64, generator=generator) @ span
            optimizer.step()
        rest = atoms - atoms @ span.T @ span
        outside[kind] = (rest.square().sum() / atoms.square().sum()).item()
    assert outside[RowAdam] < 1e-20
    assert outside[torch.optim.Adam] > 0.01
