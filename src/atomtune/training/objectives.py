"""What the denoiser is asked to predict, and how much each example counts.

Diffusion:      x_t = sqrt(ᾱ_t) x_0 + sqrt(1 - ᾱ_t) ε     target ε, v = sqrt(ᾱ_t) ε - sqrt(1 - ᾱ_t) x_0, or x_0
Flow matching:  x_t = (1 - σ_t) x_0 + σ_t ε               target ε - x_0

The sampler says which. Its object is never used: DPM-Solver's `add_noise` looks timesteps up in its *current* schedule
and is silently wrong after a preview. A training scheduler is built from the same configuration.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from atomtune.errors import UserError


@dataclass
class Noised:
    """A training batch after noise was added."""

    noisy: Float[Tensor, "batch channels height width"]
    timesteps: Shaped[Tensor, " batch"]
    target: Float[Tensor, "batch channels height width"]
    weight: Float[Tensor, " batch"]

    def to(self, device: torch.device) -> Noised:
        """The same on another device."""
        return Noised(*(getattr(self, field.name).to(device) for field in fields(self)))


class Diffusion:
    """ε, v or x_0 prediction on the sampler's noise schedule, with optional min-SNR weights (arXiv 2303.09556)."""

    def __init__(self, sampler_config: Any, snr_gamma: float | None = None):
        from diffusers import DDPMScheduler

        self.scheduler: Any = DDPMScheduler.from_config(sampler_config)
        self.prediction_type = self.scheduler.config["prediction_type"]
        self.snr_gamma = snr_gamma

    def add_noise(self, latents: Float[Tensor, "batch channels height width"], generator: torch.Generator) -> Noised:
        """Noise and timesteps from `generator` (CPU), timesteps uniform over the schedule."""
        noise = torch.randn(latents.shape, generator=generator)
        timesteps = torch.randint(self.scheduler.config["num_train_timesteps"], (len(latents),), generator=generator)
        noisy = self.scheduler.add_noise(latents, noise, timesteps)
        if self.prediction_type == "epsilon":
            target = noise
        elif self.prediction_type == "v_prediction":
            target = self.scheduler.get_velocity(latents, noise, timesteps)
        else:
            target = latents
        return Noised(noisy, timesteps, target, self.weight(timesteps))

    def weight(self, timesteps: Shaped[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        """min(SNR, γ) as a weight on the loss in x_0, put in terms of what is predicted."""
        if self.snr_gamma is None:
            return torch.ones(len(timesteps))
        from diffusers.training_utils import compute_snr

        snr = compute_snr(self.scheduler, timesteps)
        divisor = {"epsilon": snr, "v_prediction": snr + 1, "sample": torch.ones_like(snr)}[self.prediction_type]
        # 0/0 at zero terminal SNR, where min(SNR, γ)/SNR is 1
        return torch.where(divisor == 0, 1.0, snr.clamp(max=self.snr_gamma) / divisor)


class FlowMatching:
    """ε - x_0 prediction; timesteps logit-normal as in Stable Diffusion 3."""

    def __init__(self, sampler_config: Any):
        from diffusers import FlowMatchEulerDiscreteScheduler

        # DPM-Solver and its kin say "flow_shift" where the flow-matching scheduler says "shift".
        shift = sampler_config.get("shift", sampler_config.get("flow_shift", 1.0))
        self.scheduler: Any = FlowMatchEulerDiscreteScheduler.from_config(sampler_config, shift=shift)

    def add_noise(self, latents: Float[Tensor, "batch channels height width"], generator: torch.Generator) -> Noised:
        """Noise and timesteps from `generator` (CPU)."""
        from diffusers.training_utils import compute_density_for_timestep_sampling

        noise = torch.randn(latents.shape, generator=generator)
        u = compute_density_for_timestep_sampling("logit_normal", len(latents), 0.0, 1.0, generator=generator)
        steps = (u * self.scheduler.config["num_train_timesteps"]).long()
        sigma = self.scheduler.sigmas[steps].float()[:, None, None, None]
        noisy = (1 - sigma) * latents + sigma * noise
        return Noised(noisy, self.scheduler.timesteps[steps], noise - latents, torch.ones(len(latents)))


def objective_for(sampler: Any, snr_gamma: float | None = None) -> Diffusion | FlowMatching:
    """The objective that fits a pipeline's sampler. Raises `UserError` for a prediction type that has none here."""
    kind = sampler.config.get("prediction_type", "flow_prediction" if "FlowMatch" in type(sampler).__name__ else None)
    if kind == "flow_prediction":
        if snr_gamma is not None:
            raise UserError(
                "snr_gamma weighs by a diffusion base's signal-to-noise ratio: remove it for this one, which flows."
            )
        return FlowMatching(sampler.config)
    if kind not in ("epsilon", "v_prediction", "sample"):
        raise UserError(
            f"{type(sampler).__name__} predicts {kind!r}: expected epsilon, v_prediction, sample or flow_prediction."
        )
    return Diffusion(sampler.config, snr_gamma)


def prediction_loss(
    prediction: Float[Tensor, "batch out_channels height width"], noised: Noised
) -> Float[Tensor, " batch"]:
    """Weighted mean squared error of each example.

    A denoiser with learned variance answers twice the channels; the second half is left alone, as diffusers does.
    """
    if prediction.shape[1] == 2 * noised.target.shape[1]:
        prediction = prediction.chunk(2, dim=1)[0]
    return noised.weight * (prediction.float() - noised.target).square().mean(dim=(1, 2, 3))
