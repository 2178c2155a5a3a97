"""Objectives against their formulas, in float64."""

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)
from torch.testing import assert_close

from atomtune.errors import UserError
from atomtune.training.objectives import Diffusion, FlowMatching, Noised, objective_for, prediction_loss


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draws(shape, steps=1000):
    """The noise and timesteps that an objective draws from a fresh generator."""
    g = generator()
    return torch.randn(shape, generator=g), torch.randint(steps, shape[:1], generator=g)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_targets_follow_the_prediction_type(prediction_type):
    x_0 = torch.randn(6, 4, 8, 8, generator=generator(1))
    noised = objective_for(DPMSolverMultistepScheduler(prediction_type=prediction_type)).add_noise(x_0, generator())
    epsilon, t = draws(x_0.shape)
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    alpha_bar = (1 - betas).cumprod(0)[t][:, None, None, None]
    x, e = x_0.double(), epsilon.double()
    assert_close(noised.noisy.double(), alpha_bar.sqrt() * x + (1 - alpha_bar).sqrt() * e, atol=1e-5, rtol=1e-5)
    target = {"epsilon": e, "v_prediction": alpha_bar.sqrt() * e - (1 - alpha_bar).sqrt() * x, "sample": x}
    assert_close(noised.target.double(), target[prediction_type], atol=1e-5, rtol=1e-5)
    assert_close(noised.timesteps, t)
    assert_close(noised.weight, torch.ones(6))


def test_a_preview_does_not_change_the_training_noise():
    x_0 = torch.randn(2, 4, 8, 8, generator=generator(1))
    sampler = DPMSolverMultistepScheduler()
    objective = objective_for(sampler)
    before = objective.add_noise(x_0, generator())
    sampler.set_timesteps(20)
    assert_close(objective.add_noise(x_0, generator()).noisy, before.noisy, atol=0, rtol=0)
    assert_close(objective_for(sampler).add_noise(x_0, generator()).noisy, before.noisy, atol=0, rtol=0)


def test_the_samplers_own_betas_are_used():
    sampler = EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    objective = objective_for(sampler)
    assert isinstance(objective, Diffusion)
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    assert_close(objective.alphas_cumprod.double(), (1 - betas).cumprod(0), atol=1e-5, rtol=1e-4)  # ᾱ of float32


@pytest.mark.parametrize("sampler", [FlowMatchEulerDiscreteScheduler(shift=3.0), None], ids=["euler", "dpm-solver"])
def test_flow_matching(sampler):
    sampler = sampler or DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    x_0 = torch.randn(6, 4, 8, 8, generator=generator(1))
    noised = objective_for(sampler).add_noise(x_0, generator())
    g = generator()
    epsilon = torch.randn(x_0.shape, generator=g)
    u = torch.sigmoid(torch.normal(0.0, 1.0, (6,), generator=g))
    linear = 1 - (u * 1000).long().double() / 1000  # t falls as u rises
    sigma = 3 * linear / (1 + 2 * linear)
    told = 1000 * sigma
    if isinstance(sampler, DPMSolverMultistepScheduler):  # which tells the denoiser whole timesteps
        told = (told + 1e-3).floor()
    assert_close(noised.timesteps.double(), told, atol=1e-3, rtol=1e-4)
    sigma = sigma[:, None, None, None]
    assert_close(noised.noisy.double(), (1 - sigma) * x_0 + sigma * epsilon, atol=1e-5, rtol=1e-5)
    assert_close(noised.target, epsilon - x_0)


@pytest.mark.parametrize("shift", [1.0, 3.0, 6.0])
def test_a_whole_timestep_is_told_as_it_is(shift):
    """float32 puts some of them just below."""
    options = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": shift}
    objective = objective_for(DPMSolverMultistepScheduler(**options))
    assert isinstance(objective, FlowMatching)
    linear = torch.arange(1000, 0, -1, dtype=torch.float64) / 1000
    exact = 1000 * shift * linear / (1 + (shift - 1) * linear)
    assert_close(objective.told(objective.scheduler.timesteps).double(), (exact + 1e-6).floor(), atol=0, rtol=0)
    # The same configuration in a sampler that tells fractions.
    euler = objective_for(FlowMatchEulerDiscreteScheduler.from_config(DPMSolverMultistepScheduler(**options).config))
    assert euler.told(torch.tensor([0.5])) == 0.5


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_min_snr_weights(prediction_type):
    objective = objective_for(DDIMScheduler(prediction_type=prediction_type), snr_gamma=5.0)
    t = torch.tensor([0, 10, 500, 999])
    alpha_bar = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)[t]
    snr = alpha_bar / (1 - alpha_bar)
    divisor = {"epsilon": snr, "v_prediction": snr + 1, "sample": torch.ones(4)}[prediction_type]
    assert_close(objective.weight(t).double(), snr.clamp(max=5) / divisor, atol=1e-4, rtol=1e-4)  # pyright: ignore


def test_min_snr_is_finite_at_zero_terminal_snr():
    sampler = DDIMScheduler(prediction_type="epsilon", rescale_betas_zero_snr=True)
    objective = objective_for(sampler, snr_gamma=5.0)
    assert_close(objective.weight(torch.tensor([999])), torch.ones(1))  # pyright: ignore


def test_min_snr_needs_a_diffusion_base():
    with pytest.raises(UserError, match="snr_gamma"):
        objective_for(FlowMatchEulerDiscreteScheduler(), snr_gamma=5.0)


def test_learned_variance_is_left_alone():
    noised = Noised(torch.zeros(2, 4, 3, 3), torch.zeros(2), torch.ones(2, 4, 3, 3), torch.tensor([1.0, 2.0]))
    prediction = torch.cat([torch.full((2, 4, 3, 3), 3.0), torch.full((2, 4, 3, 3), 1e6)], dim=1)
    assert_close(prediction_loss(prediction, noised), torch.tensor([4.0, 8.0]))
    assert_close(prediction_loss(prediction[:, :4], noised), torch.tensor([4.0, 8.0]))
