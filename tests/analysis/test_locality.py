"""coverage and maps against plain formulas."""

import math

import pytest
import torch
from peft import get_peft_model
from torch.testing import assert_close

from atomtune.analysis.locality import coverage, magnitude_maps
from atomtune.errors import UserError
from atomtune.tracing import trace
from tests.adapters.tiny import atom_config, run, transformer, wake


def test_coverage_is_the_exponential_of_the_entropy():
    one, two, every = torch.zeros(8), torch.zeros(8), torch.ones(8)
    one[3], two[:2] = -5.0, 1.0
    assert_close(coverage(torch.stack([one, two, every])), torch.tensor([1 / 8, 2 / 8, 1.0], dtype=torch.float64))
    p = torch.tensor([0.1, 0.2, 0.7])
    expected = math.exp(-sum(x * math.log(x) for x in (0.1, 0.2, 0.7))) / 3
    assert float(coverage(3 * p)) == pytest.approx(expected, rel=1e-6)


def test_maps_are_the_mean_size_of_the_codes():
    model = wake(get_peft_model(transformer(), atom_config()))
    with trace(model, codes=True) as seen:
        run(model)
    for layer in seen.layers:
        maps = magnitude_maps(layer)
        assert maps.shape == (2, 16, 18)
        for m in range(18):
            assert_close(maps[..., m], layer.maps(m).abs())  # one timestep, so no sign is lost in the mean
        assert_close(maps.mean((0, 1)), layer.usage, atol=1e-3, rtol=1e-2)  # codes are kept in half precision


def test_maps_need_codes():
    model = wake(get_peft_model(transformer(), atom_config()))
    with trace(model) as seen:
        run(model)
    with pytest.raises(UserError, match="this trace kept no codes"):
        magnitude_maps(seen.layers[0])
