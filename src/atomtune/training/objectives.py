"""What the denoiser is trained to predict, and the weight of each example.

Diffusion:      x_t = sqrt(ᾱ_t) x_0 + sqrt(1 - ᾱ_t) ε     target ε, v = sqrt(ᾱ_t) ε - sqrt(1 - ᾱ_t) x_0, or x_0
Flow matching:  x_t = (1 - σ_t) x_0 + σ_t ε               target ε - x_0

The sampler's configuration decides which, and α and σ are read from it. Its `add_noise` is never called: DPM-Solver's
looks timesteps up in its *current* schedule and is silently wrong after an image was drawn. `observed.check` compares
α and σ with those of a drawing.
"""

from __future__ import annotations

from collections.abc import Callable
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
    mask: Float[Tensor, "batch channels height width"] | None = None
    """How much each latent counts in the loss of its example, 1 on average; None if all count alike."""

    def rows(self, chosen: slice | Tensor) -> Noised:
        """Some examples of the batch."""
        return self._each(lambda part: part[chosen])

    def joined(self, other: Noised) -> Noised:
        """The batch, and another one after it."""
        mask = None
        if self.mask is not None or other.mask is not None:
            mask = torch.cat([torch.ones_like(one.target) if one.mask is None else one.mask for one in (self, other)])
        names = [field.name for field in fields(self) if field.name != "mask"]
        return Noised(*(torch.cat([getattr(self, name), getattr(other, name)]) for name in names), mask=mask)

    def to(self, device: torch.device) -> Noised:
        """The same on another device."""
        return self._each(lambda part: part.to(device))

    def _each(self, function: Callable[[Tensor], Tensor]) -> Noised:
        parts = [getattr(self, field.name) for field in fields(self)]
        changed: list[Any] = [None if part is None else function(part) for part in parts]
        return Noised(*changed)


class Diffusion:
    """ε, v or x_0 prediction on the sampler's noise schedule, with optional min-SNR weights (arXiv 2303.09556)."""

    def __init__(self, sampler: Any, snr_gamma: float | None = None):
        self.alphas_cumprod: Float[Tensor, " timesteps"] = sampler.alphas_cumprod.float().cpu()
        self.prediction_type = sampler.config["prediction_type"]
        self.snr_gamma = snr_gamma

    def add_noise(self, latents: Float[Tensor, "batch channels height width"], generator: torch.Generator) -> Noised:
        """Noise and timesteps from `generator` (CPU), timesteps uniform over the schedule."""
        noise = torch.randn(latents.shape, generator=generator)
        timesteps = torch.randint(len(self.alphas_cumprod), (len(latents),), generator=generator)
        alpha, sigma = self.coefficients(timesteps)
        target = self.target(latents, noise, alpha, sigma)
        return Noised(alpha * latents + sigma * noise, timesteps, target, self.weight(timesteps))

    def told(self, timesteps: Tensor) -> Tensor:
        """What the denoiser is told of timesteps."""
        return timesteps

    def coefficients(self, timesteps: Shaped[Tensor, " batch"]) -> tuple[Tensor, Tensor]:
        """α and σ [batch, 1, 1, 1]; between two timesteps, where some samplers stop, their ᾱ is interpolated."""
        known, t = self.alphas_cumprod, timesteps.clamp(0, len(self.alphas_cumprod) - 1)
        below = t.floor().long()
        squared = torch.lerp(known[below], known[t.ceil().long()], (t - below).to(known))[:, None, None, None]
        return squared.sqrt(), (1 - squared).sqrt()

    def target(self, latents: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The output that the denoiser should give for alpha · latents + sigma · noise."""
        if self.prediction_type == "epsilon":
            return noise
        return latents if self.prediction_type == "sample" else alpha * noise - sigma * latents

    def weight(self, timesteps: Shaped[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        """min(SNR, γ) as a weight on the loss in x_0, converted to the loss in what is predicted."""
        if self.snr_gamma is None:
            return torch.ones(len(timesteps))
        from diffusers.training_utils import compute_snr

        snr = compute_snr(self, timesteps)  # which reads `alphas_cumprod`
        divisor = {"epsilon": snr, "v_prediction": snr + 1, "sample": torch.ones_like(snr)}[self.prediction_type]
        # 0/0 at zero terminal SNR, where min(SNR, γ)/SNR is 1
        return torch.where(divisor == 0, 1.0, snr.clamp(max=self.snr_gamma) / divisor)


class FlowMatching:
    """ε - x_0 prediction; timesteps logit-normal as in Stable Diffusion 3, or as `density` says.

    A constant shift of the sampler shifts these timesteps too. One that depends on the resolution does not, as in
    diffusers' DreamBooth scripts. Samplers of the DPM-Solver kind draw at any σ but tell the denoiser 1000 σ in whole
    numbers, and so does training on a base that has one.
    """

    def __init__(self, sampler: Any, density: str = "logit_normal"):
        from diffusers import FlowMatchEulerDiscreteScheduler

        sampler_config = sampler.config
        self.density = density
        self.whole = "FlowMatch" not in type(sampler).__name__
        # DPM-Solver and similar samplers call "flow_shift" what the flow-matching scheduler calls "shift".
        shift = sampler_config.get("shift", sampler_config.get("flow_shift", 1.0))
        options = {"use_dynamic_shifting": sampler_config.get("use_dynamic_shifting", False), "shift": shift}
        self.scheduler: Any = FlowMatchEulerDiscreteScheduler(sampler_config["num_train_timesteps"], **options)

    def add_noise(self, latents: Float[Tensor, "batch channels height width"], generator: torch.Generator) -> Noised:
        """Noise and timesteps from `generator` (CPU)."""
        from diffusers.training_utils import compute_density_for_timestep_sampling

        noise = torch.randn(latents.shape, generator=generator)
        u = compute_density_for_timestep_sampling(self.density, len(latents), 0.0, 1.0, generator=generator)
        steps = (u * self.scheduler.config["num_train_timesteps"]).long()
        timesteps = self.scheduler.timesteps[steps]
        alpha, sigma = self.coefficients(timesteps)
        target = self.target(latents, noise, alpha, sigma)
        return Noised(alpha * latents + sigma * noise, self.told(timesteps), target, torch.ones(len(latents)))

    def told(self, timesteps: Tensor) -> Tensor:
        """What the denoiser is told of timesteps. Rounded down, but for what float32 put just below a whole one."""
        return (timesteps + 1e-3).floor() if self.whole else timesteps

    def coefficients(self, timesteps: Shaped[Tensor, " batch"]) -> tuple[Tensor, Tensor]:
        """1 - σ and σ [batch, 1, 1, 1]."""
        sigma = (timesteps / self.scheduler.config["num_train_timesteps"])[:, None, None, None]
        return 1 - sigma, sigma

    def target(self, latents: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The output that the denoiser should give for alpha · latents + sigma · noise."""
        return noise - latents


Objective = Diffusion | FlowMatching


def objective_for(sampler: Any, snr_gamma: float | None = None, density: str = "logit_normal") -> Objective:
    """The objective that fits a pipeline's sampler. Raises `UserError` if there is none.

    `density` is how flow matching draws its timesteps, a `weighting_scheme` of diffusers' scripts."""
    kind = sampler.config.get("prediction_type", "flow_prediction" if "FlowMatch" in type(sampler).__name__ else None)
    if kind == "flow_prediction":
        if snr_gamma is not None:
            raise UserError(
                "snr_gamma weighs by a diffusion base's signal-to-noise ratio: remove it, this base uses flow matching."
            )
        return FlowMatching(sampler, density)
    if kind not in ("epsilon", "v_prediction", "sample"):
        raise UserError(
            f"{type(sampler).__name__} predicts {kind!r}: expected epsilon, v_prediction, sample or flow_prediction."
        )
    if getattr(sampler, "alphas_cumprod", None) is None:  # EDM and other processes that scale input and time
        raise UserError(
            f"{type(sampler).__name__} adds noise in a way that is not trained here: expected a sampler with DDPM's "
            "noise schedule (alphas_cumprod) or one of flow matching; choose another base."
        )
    return Diffusion(sampler, snr_gamma)


def prediction_loss(
    prediction: Float[Tensor, "batch out_channels height width"], noised: Noised
) -> Float[Tensor, " batch"]:
    """Weighted mean squared error of each example: w · Σ m e² / Σ m, m being its mask."""
    squares = (predicted(prediction, noised).float() - noised.target).square()
    if noised.mask is not None:
        squares = squares * noised.mask  # whose mean is 1
    return noised.weight * squares.mean(dim=(1, 2, 3))


def predicted(prediction: Float[Tensor, "batch out_channels height width"], noised: Noised) -> Tensor:
    """The part of a denoiser's output that is compared with the target. A denoiser with learned variance returns twice
    the channels; the second half is ignored, as diffusers does."""
    return prediction.chunk(2, dim=1)[0] if prediction.shape[1] == 2 * noised.target.shape[1] else prediction
