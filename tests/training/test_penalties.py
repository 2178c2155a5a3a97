"""Penalties and annealing against their formulas in float64, and in a run."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from peft import get_peft_model
from PIL import Image
from torch.testing import assert_close

import atomtune
from atomtune.adapters import adapted_layers
from atomtune.method.sigma import BANDWIDTH, SigmaConfig
from atomtune.training import configure
from atomtune.training.penalties import Penalties, annealed, density_error, l1, orthogonality
from tests.adapters.tiny import atom_config, run, transformer, wake
from tests.tiny_pixart import save_tiny_pixart

GIVEN = {"images": "photos", "class_name": "dog", "out": "out", "base": "nowhere"}


def test_l1_is_that_of_eq_5():
    S = torch.randn(3, 4, 5, dtype=torch.float64)
    assert_close(l1(S), sum(abs(s) for s in S.flatten()) / 12)


def test_orthogonality_is_the_sum_of_squared_cosines_between_different_atoms():
    D = torch.randn(4, 6, dtype=torch.float64)
    expected = 0.0
    for i in range(4):
        for j in range(4):
            if i != j:
                expected += float((D[i] @ D[j] / D[i].norm() / D[j].norm()) ** 2) / 4
    assert float(orthogonality(D)) == pytest.approx(expected)
    assert float(orthogonality(torch.eye(4))) == 0 == float(orthogonality(torch.zeros(4, 6)))


def test_the_density_error_moves_lambda_towards_the_density():
    c = torch.randn(500, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    σ: Any = SigmaConfig("jumprelu", threshold=0.5).build(8).double()  # λ = e^θ
    share = float((c > 0.5).double().mean())
    error = density_error(σ.firing(c).mean(), 0.04)
    assert error.item() == pytest.approx((share / 0.04 - 1) ** 2)
    error.backward()
    near = ((c - 0.5).abs() < BANDWIDTH * 0.5 / 2).double().sum(0) / (500 * 8) / (BANDWIDTH * 0.5)
    θ = σ.log_threshold
    assert_close(θ.grad, 0.5 * -2 * (share / 0.04 - 1) / 0.04 * near)
    assert (θ.grad < 0).all()  # too many fire: λ grows


def test_annealing_is_geometric_and_ends_half_way():
    assert annealed(0.04, None, 0.1) == 0.04
    assert [annealed(0.04, 0.64, progress) for progress in (0.0, 0.25, 0.5, 1.0)] == pytest.approx(
        [0.64, 0.16, 0.04, 0.04]
    )


@pytest.mark.parametrize("options", [{"l1": 0.5}, {"orthogonality": 2.0}, {"activation": "jumprelu"}], ids=str)
def test_penalties_of_a_model_are_the_means_over_its_layers(options):
    σ = options.get("activation", "topk")
    model = wake(get_peft_model(transformer(), atom_config(activation=σ, threshold=0.3)))
    dictionaries = [layer.dictionary("default") for layer in adapted_layers(model)]
    config = configure(**GIVEN, **options, density=0.2)
    penalties, codes, coefficients = Penalties(config, dictionaries), [], []
    for dictionary in dictionaries:
        dictionary.decoder.register_forward_pre_hook(lambda _, args: codes.append(args[0]))
        dictionary.sigma.register_forward_pre_hook(lambda _, args: coefficients.append(args[0]))
    with penalties.watched():
        run(model.train())
    if "l1" in options:
        expected = torch.stack([0.5 * S.abs().sum(-1).mean() for S in codes]).mean()
    elif "orthogonality" in options:
        expected = torch.stack([2 * orthogonality(d.decoder.weight) for d in dictionaries]).mean()
    else:
        shares = [(c > 0.3).float().mean() for c in coefficients]
        expected = torch.stack([0.1 * (share / 0.2 - 1) ** 2 for share in shares]).mean()
    assert_close(torch.as_tensor(penalties.total()), expected, atol=1e-5, rtol=1e-4)
    assert penalties.total() == 0 or "orthogonality" in options  # those of one run of the model


@pytest.mark.parametrize(
    "options",
    [{"l1": 0.1, "orthogonality": 0.1}, {"density_start": 1.0}, {"activation": "jumprelu", "threshold_units": "scale"},
     {"activation": "batch_topk", "unit_encoder": True}],
    ids=str,
)  # fmt: skip
def test_a_run_with_each_of_them_trains_and_continues(tmp_path, options):
    base = save_tiny_pixart(tmp_path / "base")
    (tmp_path / "photos").mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photos" / "0.png")
    common = {"class_name": "dog", "base": str(base), "num_atoms": 16, "density": 0.25, "sample_every": 0}
    common |= {"learning_rate": 1e-2, "checkpoint_every": 2, "report_to": "none"} | options
    summary = atomtune.customize(tmp_path / "photos", out=tmp_path / "run", steps=6, **common)
    assert np.isfinite(summary["loss"])
    config = json.loads((tmp_path / "run" / "adapter" / "adapter_config.json").read_text())
    assert config["activation"] == options.get("activation", "topk") and config["density"] == 0.25
    if "density_start" in options:
        assert summary["active_per_token"] == 16  # it was measured at the first step, before the annealing
