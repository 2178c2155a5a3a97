"""Training gives every supported denoiser what its own pipeline gives it, and refuses bases where it would not."""

from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from typing import Any
from unittest.mock import patch

import diffusers
import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    FluxKontextPipeline,
    FluxPipeline,
    StableDiffusionPAGPipeline,
    StableDiffusionPipeline,
)
from PIL import Image
from torch.testing import assert_close

import atomtune
from atomtune import moji
from atomtune.analysis.examples import training_examples
from atomtune.bases import BaseParts, call_options, denoiser, families, layouts
from atomtune.bases.families import Clock, family_of
from atomtune.errors import UserError
from atomtune.sizes import GivenSize
from atomtune.training import encoding, observed
from atomtune.training.objectives import Diffusion, objective_for
from tests.tiny_pixart import tiny_pixart
from tests.training import tiny_others

BETAS: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
FLOW: dict[str, Any] = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}


def check(pipe: Any, size: GivenSize = 64, tables: torch.dtype = torch.float64) -> list[observed.Input]:
    """As `encoding.check`, but in float64. The tables of the sampler and of training, which are in float32, are in
    float64 too by default: DPM-Solver's first step divides by α = .006, so half a step of float32 in its σ becomes 3e-6
    of the noise."""
    pipe.set_progress_bar_config(disable=True)
    answer = encoding.cast(encoding.encode_prompt(pipe, "a sks dog", size), torch.float64)
    objective, sampler, set_timesteps = objective_for(pipe.scheduler), pipe.scheduler, pipe.scheduler.set_timesteps
    precise = tables == torch.float64
    if precise and isinstance(objective, Diffusion):
        sampler.alphas_cumprod = objective.alphas_cumprod = objective.alphas_cumprod.double()

    @wraps(set_timesteps)
    def in_float64(*args: Any, **kwargs: Any) -> None:
        with patch.object(np, "float32", np.float64):  # what samplers make their tables of
            set_timesteps(*args, **kwargs)

    drawing = in_float64 if precise else set_timesteps
    with encoding.replayed(pipe, answer), observed.replaced(sampler, "set_timesteps", drawing):
        return observed.check(pipe, objective, "a sks dog", size)


def stable_diffusion(scheduler: str, **options: Any) -> Any:
    pipe: Any = tiny_others.stable_diffusion()
    pipe.scheduler = getattr(diffusers, scheduler)(**BETAS, **options)
    return pipe


V: dict[str, Any] = {"prediction_type": "v_prediction"}
ZERO_SNR: dict[str, Any] = V | {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
SUPPORTED = {
    "moji": moji.random_pipeline,
    "PixArt": tiny_pixart,
    "PixArt, v": lambda: tiny_pixart(**V),
    "PixArt, x_0": lambda: tiny_pixart(prediction_type="sample"),
    "SD, DDIM": tiny_others.stable_diffusion,
    "SD, v": lambda: stable_diffusion("DDIMScheduler", **V),
    "SD, v to zero SNR": lambda: stable_diffusion("DDIMScheduler", **ZERO_SNR),
    "SD, PNDM": lambda: stable_diffusion("PNDMScheduler", skip_prk_steps=True),
    "SD, PNDM, v": lambda: stable_diffusion("PNDMScheduler", skip_prk_steps=True, steps_offset=1, **V),
    "SD, Euler": lambda: stable_diffusion("EulerDiscreteScheduler"),
    "SD, Euler, v": lambda: stable_diffusion("EulerDiscreteScheduler", **V),
    "SD, UniPC": lambda: stable_diffusion("UniPCMultistepScheduler"),
    "SD, Heun": lambda: stable_diffusion("HeunDiscreteScheduler"),
    "SDXL": tiny_others.stable_diffusion_xl,
    "SD3": tiny_others.stable_diffusion_3,
}


@pytest.mark.parametrize("name", SUPPORTED)
def test_training_gives_what_the_pipeline_gives(name):
    inputs = check(SUPPORTED[name]())
    assert len({round(seen.timestep) for seen in inputs}) == 2
    for seen in inputs:
        assert seen.image == pytest.approx(seen.alpha, abs=1e-6)
        assert seen.noise == pytest.approx(seen.sigma, abs=1e-6)
        assert seen.rest < 1e-6


@pytest.mark.parametrize("make", [lambda: tiny_pixart(**FLOW), tiny_others.sana], ids=["PixArt", "Sana"])
def test_flow_matching_by_dpm_solver(make):
    for seen in check(make()):
        assert float(seen.timestep).is_integer() and not (1000 * seen.sigma).is_integer()  # it is told less than σ
        assert seen.image == pytest.approx(seen.alpha, abs=1e-6)
        assert seen.noise == pytest.approx(seen.sigma, abs=1e-6)
        assert seen.rest < 1e-6


STOCHASTIC = ["DDPMScheduler", "EulerAncestralDiscreteScheduler", "LCMScheduler"]


@pytest.mark.parametrize("scheduler", STOCHASTIC)
def test_samplers_that_add_fresh_noise(scheduler):
    """It is left out: the image is there in full, of the noise only what is kept."""
    for seen in check(stable_diffusion(scheduler)):
        assert seen.image == pytest.approx(seen.alpha, abs=1e-6)
        assert -1e-6 <= seen.noise <= seen.sigma + 1e-6
        assert seen.rest < 1e-6


def test_a_base_in_half_precision():
    pipe = tiny_pixart().to(torch.bfloat16)
    encoding.check(pipe, objective_for(pipe.scheduler), "a dog", encoding.encode_prompt(pipe, "a dog", 64), 64)


class Negated(DDIMScheduler):
    """Takes the answer with the other sign."""

    def step(self, model_output: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return super().step(-model_output, *args, **kwargs)


class Backwards(DDIMScheduler):
    """Counts time the other way round."""

    def set_timesteps(self, *args: Any, **kwargs: Any) -> None:
        super().set_timesteps(*args, **kwargs)
        self.timesteps = 999 - self.timesteps

    def step(self, model_output: torch.Tensor, timestep: Any, *args: Any, **kwargs: Any) -> Any:
        return super().step(model_output, 999 - timestep, *args, **kwargs)


class Scaled(DDIMScheduler):
    """Scales the input, as EDM does."""

    def scale_model_input(self, sample: torch.Tensor, timestep: Any = None) -> torch.Tensor:
        return 0.8 * sample


class OtherNoise(DDIMScheduler):
    """Draws on another noise schedule than it says."""

    def step(self, *args: Any, **kwargs: Any) -> Any:
        says, self.alphas_cumprod = self.alphas_cumprod, self.alphas_cumprod**0.5
        result = super().step(*args, **kwargs)
        self.alphas_cumprod = says
        return result


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("scheduler", [Negated, Backwards, Scaled, OtherNoise])
def test_another_sign_clock_or_scale_is_noticed(scheduler, prediction_type):
    pipe = tiny_others.stable_diffusion()
    pipe.scheduler = scheduler(**BETAS, clip_sample=False, prediction_type=prediction_type)
    with pytest.raises(UserError, match=r"StableDiffusionPipeline gives its denoiser .* of the image"):
        check(pipe)


class Drifting(StableDiffusionPipeline):
    """Tells its denoiser another prompt after the first step."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        def drift(pipe: Any, index: int, timestep: int, values: dict[str, Any]) -> dict[str, Any]:
            return {"prompt_embeds": values["prompt_embeds"] + 1}

        options: dict[str, Any] = {"callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
        return super().__call__(*args, callback_on_step_end=drift, **options, **kwargs)  # pyright: ignore


def test_conditioning_that_changes_while_drawing_is_noticed():
    pipe: Any = Drifting(**tiny_others.stable_diffusion().components)
    with pytest.raises(UserError, match="Drifting gives its denoiser another encoder_hidden_states from step to step"):
        check(pipe)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: tiny_pixart(prediction_type="flow_prediction"), "PixArtSigmaPipeline gives its denoiser"),
    ],
)
def test_bases_that_draw_otherwise_are_refused_by_name(make, sentence):
    with pytest.raises(UserError, match=sentence):
        check(make())


class OwnFlux(FluxPipeline):
    """A class of a user's own."""


def test_a_subclass_of_a_familys_pipeline_is_of_the_family():
    check(OwnFlux(**tiny_others.flux().components))


def kontext() -> Any:
    """Flux.1's denoiser, in a pipeline that draws from another image."""
    parts = tiny_others.flux().components
    return FluxKontextPipeline(**{name: part for name, part in parts.items() if part is not None})


def perturbed() -> Any:
    """Stable Diffusion with another guidance: without it, it draws as Stable Diffusion does."""
    return StableDiffusionPAGPipeline(**tiny_others.stable_diffusion().components)


@pytest.mark.filterwarnings("ignore:.*FluxPosEmbed:FutureWarning")  # diffusers' own, in Chroma's denoiser
@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (kontext, r"Flux.1 \(FluxPipeline\), which has the same denoiser.$"),
        (
            tiny_others.chroma,
            r"Flux.1 \(FluxPipeline\), which too gives its denoiser four times as many channels as .*has.$",
        ),
        (perturbed, r"Stable Diffusion 1.5, SDXL \(StableDiffusionPipeline, .*\), which has the same denoiser.$"),
    ],
)
def test_another_base_is_refused_with_the_nearest_one(make, sentence, tmp_path):
    """Also one whose drawing training would agree with; and its folder is, before anything of it is loaded."""
    match, pipe = f"{{}} is no base that can be trained; the nearest one that can is {sentence}", make()
    with pytest.raises(UserError, match=match.format(type(pipe).__name__)):
        check(pipe)
    pipe.save_pretrained(tmp_path)
    for file in tmp_path.rglob("*.safetensors"):
        file.unlink()
    with pytest.raises(UserError, match=match.format(r"\w+")):
        BaseParts(str(tmp_path), torch.float32)


class Transposed(layouts.Packed):
    """Takes columns for rows."""

    def pack(self, latents: torch.Tensor) -> torch.Tensor:
        return super().pack(latents.mT)

    def unpack(self, packed: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        return super().unpack(packed, size).mT if packed.ndim == 3 else packed


WRONG: dict[str, Callable[[Any], dict[str, Any]]] = {
    "sign": lambda family: {"sign": -family.sign},
    "clock": lambda family: {"clock": Clock()},
    "clock backwards": lambda family: {"clock": replace(family.clock, backwards=not family.clock.backwards)},
    "layout": lambda family: {"layout": Transposed(2)},
}
PACKED = [tiny_others.flux, tiny_others.qwen_image]
REVERSED = [tiny_others.z_image, tiny_others.lumina_2]  # noise is at 0, and the sign is the other one


@pytest.mark.parametrize(
    ("make", "what"),
    [(make, what) for make in PACKED + REVERSED for what in WRONG if make in PACKED or what != "layout"],
)
def test_a_family_that_is_written_wrongly_is_noticed(make, what, monkeypatch):
    pipe = make()
    wrong = replace(family_of(pipe), **WRONG[what](family_of(pipe)))
    monkeypatch.setattr(families, "FAMILIES", (wrong,))
    with pytest.raises(UserError, match=f"{type(pipe).__name__} "):
        check(pipe)


@pytest.mark.parametrize("scheduler", ["EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"])
def test_edm_is_refused(scheduler):
    with pytest.raises(UserError, match=scheduler):
        objective_for(getattr(diffusers, scheduler)())


STATISTICS: dict[str, Any] = {"latents_mean": [0.1, -0.2, 0.3, 0.0], "latents_std": [5.0, 6.0, 7.0, 8.0]}


def test_latents_are_standardized_where_the_pipeline_does_so():
    pipe = tiny_others.stable_diffusion_xl(scaling_factor=0.5, **STATISTICS)
    check(pipe)
    image = Image.linear_gradient("L").resize((64, 64)).convert("RGB")
    with torch.no_grad():
        raw = pipe.vae.encode(encoding.to_tensor(image)[None]).latent_dist
    mean, std = (torch.tensor(STATISTICS[name]).view(1, 4, 1, 1) for name in ("latents_mean", "latents_std"))
    latents = encoding.encode_images(pipe, [image])
    assert_close(latents.mean, 0.5 * (raw.mean - mean) / std)
    assert_close(latents.std, 0.5 * raw.std / std)


@pytest.mark.parametrize("statistics", [STATISTICS, {"shift_factor": 0.1}], ids=["mean and std", "shift"])
def test_statistics_that_the_pipeline_passes_over_are_refused(statistics):
    pipe = tiny_others.stable_diffusion()
    pipe.vae.register_to_config(**statistics)
    with pytest.raises(UserError, match="StableDiffusionPipeline does not undo the scaling of its latents"):
        check(pipe)


def test_a_base_without_an_autoencoder_is_refused():
    pipe: Any = tiny_others.stable_diffusion()
    pipe.vae = None  # as in those that draw pixels
    with pytest.raises(UserError, match="StableDiffusionPipeline has no vae"):
        check(pipe)


def test_nothing_runs_and_nothing_stays():
    pipe, runs = tiny_pixart(), []
    denoiser(pipe).proj_out.register_forward_hook(lambda *_: runs.append(1))
    answer = encoding.encode_prompt(pipe, "a dog", 64)
    random = torch.get_rng_state()
    encoding.check(pipe, objective_for(pipe.scheduler), "a dog", answer, 64)
    assert runs == [] and torch.equal(torch.get_rng_state(), random)
    for part, name in ((pipe, "encode_prompt"), (pipe.transformer, "forward"), (pipe.scheduler, "step")):
        assert name not in vars(part)
    assert "decode" not in vars(pipe.vae)
    pipe("a dog", num_inference_steps=1, output_type="latent", **call_options(pipe, 64))
    assert runs == [1]


def test_a_run_and_the_examples_of_an_analysis_are_refused_alike(images, tmp_path):
    pipe = tiny_pixart(prediction_type="flow_prediction")
    pipe.save_pretrained(tmp_path / "base")
    with pytest.raises(UserError, match="PixArtSigmaPipeline gives its denoiser"):
        atomtune.customize(images, class_name="dog", out=tmp_path / "run", base=str(tmp_path / "base"), steps=1)
    with pytest.raises(UserError, match="PixArtSigmaPipeline gives its denoiser"):
        training_examples(pipe, images, "a sks dog", resolution=64)


def test_a_base_that_does_not_say_its_size_can_be_drawn_with_a_size():
    pipe: Any = tiny_others.z_image()
    pipe.set_progress_bar_config(disable=True)
    (drawing,) = atomtune.generate(pipe, "a sks dog", steps=1, resolution=64)
    assert drawing.image.size == (64, 64)
    with pytest.raises(UserError, match=r"ZImagePipeline does not define the size of its images.* give a resolution"):
        atomtune.generate(pipe, "a sks dog", steps=1)  # its own is too large for this miniature
