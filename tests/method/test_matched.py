"""Matched filters against the formula, and what they are for."""

import pytest
import torch
from torch.testing import assert_close

from atomtune.method.floor import Floor
from atomtune.method.matched import RIDGE, Moment, matched_filters

WIDTH = 12


def draws(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def moment_of(others: torch.Tensor) -> torch.Tensor:
    return others.T @ others / len(others)


def test_the_moment_of_parts_is_that_of_the_whole():
    others, moment = draws(40, WIDTH).float(), Moment()
    for part in others.split(9):
        moment.add(part)
    assert_close(moment.mean, moment_of(others))
    with torch.autocast("cpu", torch.bfloat16):
        moment.add(others)
    assert_close(moment.mean, moment_of(others))


def test_w_is_the_inverse_of_the_others_moment_times_a_token():
    """w = (C + εI)⁻¹ x, of length 1, for one token x that is the only choice."""
    others, x = draws(40, WIDTH) * torch.linspace(0.1, 3, WIDTH), draws(1, WIDTH, seed=1)
    moment = torch.stack([torch.outer(y, y) for y in others]).mean(0)
    w = torch.linalg.inv(moment + RIDGE * moment.trace() / WIDTH * torch.eye(WIDTH)) @ x[0]
    assert_close(matched_filters(x, moment_of(others), 1, generator())[0], w / w.norm())


def test_tokens_are_chosen_by_how_little_they_are_like_the_others():
    """With a chance in proportion to xᵀ (C + εI)⁻¹ x: what no other token has, more than what all have."""
    others = torch.eye(WIDTH)[torch.arange(600) % (WIDTH - 1)].double()  # none has the last coordinate
    own = torch.eye(WIDTH, dtype=torch.float64)[[0, WIDTH - 1]]
    seed = generator()
    filters = torch.cat([matched_filters(own, moment_of(others), 1, seed) for _ in range(2000)])
    share = float((filters[:, -1] > 0.5).double().mean())
    moment = 1 / (WIDTH - 1)
    ridge = RIDGE / WIDTH
    assert share == pytest.approx((1 / ridge) / (1 / ridge + 1 / (moment + ridge)), abs=0.03)


def test_a_floor_on_the_others_silences_fewer_matched_filters_than_random_ones():
    mixing = draws(WIDTH, WIDTH, seed=2)
    others, own = draws(4000, WIDTH) @ mixing, draws(50, WIDTH, seed=1) @ mixing
    own = own + 4 * torch.linalg.inv(mixing)[:, 0] / torch.linalg.inv(mixing)[:, 0].norm()
    fires = {}
    for name, w in {
        "matched": matched_filters(own, moment_of(others), 64, generator()),
        "random": torch.nn.functional.normalize(draws(64, WIDTH, seed=3), dim=1),
    }.items():
        floor = Floor(64, 1.0)
        with floor.measuring():
            floor((others @ w.T).float())
        fires[name] = float((floor((own @ w.T).float()) != 0).any(1).double().mean())
    assert fires["matched"] > 0.9 and fires["random"] < 0.5


@pytest.mark.parametrize("heads", [1, 4])
def test_no_two_filters_are_the_same_though_tokens_are_few_and_said_often(heads):
    """A text has few tokens, and they are the same in every example: each has one filter, the others are mixtures."""
    tokens, others = draws(6, WIDTH), draws(40, WIDTH, seed=1)
    own = tokens.repeat(24, 1) * (1 + 1e-7 * draws(144, 1, seed=2))  # rounding differs from batch to batch
    filters = matched_filters(own, moment_of(others), 32, generator())
    cosines = (filters @ filters.T).abs().fill_diagonal_(0)
    assert_close(filters.norm(dim=1), torch.ones(32, dtype=torch.float64))
    assert cosines.max() < 0.999
    alone = matched_filters(tokens, moment_of(others), 6, generator())
    best = (alone @ filters.T).abs().amax(1)
    assert_close(best, torch.ones(6, dtype=torch.float64))  # each token's own is among them
    places = (alone @ filters.T).abs().argmax(1)
    assert heads == 1 or len({int(place) * heads // 32 for place in places}) > 1  # in more than one head's part


def test_the_same_seed_chooses_the_same():
    own, others = draws(30, WIDTH), draws(40, WIDTH, seed=1)
    first, second = (matched_filters(own, moment_of(others), 5, generator()) for _ in range(2))
    assert torch.equal(first, second)
