"""Check that training gives the denoiser the same inputs as its pipeline does while drawing.

Model families differ in their times (0 to 1000, 0 to 1, reversed), in the sign of the output, in the scale and the
layout of the input and in what is done to the autoencoder's latents (`bases.families`). So before a run the pipeline
draws twice, in few steps, with an oracle in place of its denoiser: it knows the latents x_0 that are to be drawn and
returns the target of training, with the family's sign and in its layout. The first step of a solver is exact for such
outputs. So if drawing and training agree, the oracle's second input, unpacked, is

    x_t = α_t x_0 + σ_t ε        with training's α and σ at the timestep of this call,

and the autoencoder's input at the end is the sampler's last latents with the scaling of `encode_images` undone. As x_0
is random, a wrong order of patches or tokens would show in both.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from atomtune.bases import call_options, denoiser
from atomtune.bases.families import family_of
from atomtune.errors import UserError
from atomtune.sizes import GivenSize, Size
from atomtune.tracing import bare_model

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from atomtune.training.objectives import Objective

STEPS = (2, 4)  # of the two drawings, so that their second inputs are at two timesteps
# The precision of a base and the rounding of timesteps to whole ones move α and σ by less.
TOLERANCE = 0.01


class Reached(Exception):
    """The pipeline reached the part at which it should stop."""


@contextlib.contextmanager
def until_reached(pipe: DiffusionPipeline, resolution: GivenSize) -> Iterator[None]:
    """Inside the block a pipeline draws until something raises `Reached`. Raises `UserError` if it fails before."""
    try:
        yield
    except (Reached, UserError) as end:
        if isinstance(end, UserError):
            raise
    except (AttributeError, IndexError, NotImplementedError, TypeError, ValueError) as error:
        raise UserError(
            f"{type(pipe).__name__} cannot draw a prompt at {resolution} pixels ({' '.join(str(error).split()):.200}): "
            "give another resolution, or choose another base."
        ) from error


@contextlib.contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Inside the block `owner.name` is `value`. An earlier attribute of the instance (a hook of offloading) is
    restored."""
    before = vars(owner).get(name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        delattr(owner, name)
        if before is not None:
            setattr(owner, name, before)


@dataclass(frozen=True)
class Input:
    """One input of the denoiser while drawing, as image · x_0 + noise · ε + something of size `rest` (rms)."""

    timestep: float  # of the sampler
    image: float
    noise: float
    rest: float
    alpha: float  # what training would give as `image` at this timestep
    sigma: float  # and as `noise`

    def agrees(self, stochastic: bool) -> bool:
        """Whether training would give the same. A stochastic sampler's fresh noise was left out, so it has less
        noise."""
        noise = abs(self.noise - self.sigma) <= TOLERANCE
        if stochastic:
            noise = -TOLERANCE <= self.noise <= self.sigma + TOLERANCE
        return noise and abs(self.image - self.alpha) <= TOLERANCE and self.rest <= TOLERANCE


@torch.no_grad()
def check(pipe: DiffusionPipeline, objective: Objective, prompt: str, resolution: GivenSize) -> list[Input]:
    """The inputs of the denoiser at two timesteps of drawing; raises `UserError` if those of training would differ.

    Neither the denoiser nor the autoencoder is run. The scheduler is left as after any drawing.
    """
    return [_Oracle(pipe, objective, resolution).draw(pipe, prompt, steps) for steps in STEPS]


class _Oracle:
    """Replaces the denoiser, and returns the target of training for latents that it knows."""

    x_0: Tensor
    noise: Tensor
    timestep: float  # the timestep of the last call, as the sampler counts
    target: Tensor  # the target of the last call
    others: dict[str, Any]  # the first call's other arguments
    latents: Tensor  # what the sampler's last step gave

    def __init__(self, pipe: DiffusionPipeline, objective: Objective, resolution: GivenSize):
        self.name, self.objective, self.resolution = type(pipe).__name__, objective, resolution
        self.family, self.scheduler = family_of(pipe), pipe.scheduler
        self.size = self.family.size(pipe, *Size.of(resolution).shape)
        self.model: Any = bare_model(denoiser(pipe))
        self.signature = inspect.signature(self.model.forward)
        self.calls = 0
        self.second: Input | None = None
        self.stochastic = False
        self.cause: str | None = None

    def draw(self, pipe: Any, prompt: str, steps: int) -> Input:
        """The oracle's second input in one drawing, which stops at the autoencoder. Raises `UserError`."""
        scheduler, vae, decoded, resolution = self.scheduler, pipe.vae, [], self.resolution

        def decode(latents: Tensor, *args: Any, **kwargs: Any) -> None:
            decoded.append(latents.float().cpu())
            raise Reached

        # Pipelines read the signatures of these functions, so the originals' are kept.
        answer = functools.wraps(self.model.forward)(functools.partial(self.answer))
        step = functools.wraps(scheduler.step)(functools.partial(self.step, scheduler.step))
        options = call_options(pipe, resolution) | {"num_inference_steps": steps, **self.family.unguided}
        with (
            replaced(self.model, "forward", answer),
            replaced(scheduler, "step", step),
            replaced(vae, "decode", decode),
            until_reached(pipe, resolution),
        ):
            pipe(prompt=prompt, generator=torch.Generator().manual_seed(0), **options)
        autoencoding = self.family.autoencoding
        if not decoded or not _close(autoencoding.normalized(vae, decoded[0]), self.latents.float().cpu()):
            statistics = autoencoding.statistics_are
            raise self.refusal(f"does not undo the scaling of its latents by its autoencoder's {statistics}")
        if self.second is None:
            raise self.refusal(f"calls its denoiser less than twice in {steps} steps")
        return self.second

    def answer(self, *args: Any, **kwargs: Any) -> Any:
        """In place of the denoiser's `forward`."""
        from diffusers.models.modeling_outputs import Transformer2DModelOutput

        arguments = dict(self.signature.bind(*args, **kwargs).arguments)
        sample, family = arguments.pop(next(iter(arguments))), self.family
        given = torch.as_tensor(arguments.pop(family.time)).flatten()[:1].cpu().double()
        time = family.clock.timesteps(given)
        self.timestep = float(time)
        noisy = self.plain(sample)
        alpha, sigma = (value.double() for value in self.objective.coefficients(self.unrounded(time)))
        self.calls += 1
        if self.calls == 1:
            random = torch.rand(noisy.shape, generator=torch.Generator().manual_seed(1), dtype=noisy.dtype)
            self.x_0 = 1.8 * random - 0.9  # below 1, so that nothing is clipped
        noise = (noisy - alpha * self.x_0) / sigma.clamp(min=1e-6)  # reversed timesteps begin at σ = 0
        if self.calls == 1:
            self.noise, self.others = noise, arguments
        elif self.calls == 2:
            self.second = self._compared(noisy, float(alpha), float(sigma))
        for name, value in self.others.items():
            if not _same(value, arguments.get(name)):
                raise self.refusal(f"gives its denoiser another {name} from step to step")
        self.target = self.objective.target(self.x_0, noise, alpha, sigma)
        output = family.signed(self.target)
        if self.model.config.get("out_channels") == 2 * output.shape[1]:  # learned variance
            output = torch.cat([output, torch.zeros_like(output)], dim=1)
        packed = family.layout.pack(output)
        if isinstance(sample, Tensor):
            return Transformer2DModelOutput(sample=packed.expand(len(sample), *packed.shape[1:]).to(sample))
        return Transformer2DModelOutput(sample=[packed[0].to(one) for one in sample])  # pyright: ignore

    def unrounded(self, time: Tensor) -> Tensor:
        """The timestep of this call, of which the denoiser is told `time`: the one at which the sampler draws, if
        training would tell the same of it."""
        sigmas = getattr(self.scheduler, "sigmas", ())
        if self.objective.told(time + 0.5) == time + 0.5 or self.calls >= len(sigmas):  # nothing is rounded
            return time
        exact = sigmas[self.calls].double()[None] * self.scheduler.config["num_train_timesteps"]
        near = [self.objective.told(exact + rounding) for rounding in (0.0, 2e-3, -2e-3)]  # of float32
        return exact if time in near else time

    def plain(self, given: Any) -> Tensor:
        """The first of a batch of latents, of the denoiser or the sampler, as plain ones."""
        return self.family.layout.unpack(given, self.size)[:1].cpu().double()

    def step(self, original: Any, model_output: Tensor, timestep: Any, *args: Any, **kwargs: Any) -> Any:
        """In place of the scheduler's `step`: without fresh noise, and with a check of its arguments."""
        with _WithoutNoise() as mode:
            result = original(model_output, timestep, *args, **kwargs)
        self.stochastic |= mode.asked
        self.latents = self.plain(result[0])
        # If the next input is not what training would give, one of these is the reason.
        target = self.target.flatten()
        handed = self.plain(model_output)[:, : self.target.shape[1]].flatten()
        factor = float(handed @ target / (target @ target))
        if abs(self.timestep - float(timestep)) > 1:
            self.cause = f"calls its denoiser with the timestep {self.timestep:g} "
            self.cause += f"where its sampler's is {float(timestep):g}"
        elif abs(factor - 1) > TOLERANCE:
            self.cause = f"gives its sampler {factor:.3g} times the output of its denoiser"
        return result

    def _compared(self, noisy: Tensor, alpha: float, sigma: float) -> Input:
        parts = torch.stack([self.x_0.flatten(), self.noise.flatten()], dim=1)
        whole = noisy.nan_to_num().flatten()[:, None]
        weights = torch.linalg.lstsq(parts, whole).solution
        rest = float((whole - parts @ weights).square().mean().sqrt())
        seen = Input(self.timestep, float(weights[0]), float(weights[1]), rest, alpha, sigma)
        if not seen.agrees(self.stochastic):
            what = f"gives its denoiser {seen.image:.3f} of the image and {seen.noise:.3f} of the noise at timestep "
            what += f"{self.timestep:g}, where {alpha:.3f} and {sigma:.3f} would be trained"
            raise self.refusal(self.cause or what)
        return seen

    def refusal(self, what: str) -> UserError:
        """The sentence that names the pipeline and what differs."""
        return UserError(
            f"{self.name} {what}: training would give the denoiser other inputs than drawing does, so training on this "
            "base is not supported."
        )


class _WithoutNoise(TorchFunctionMode):
    """Inside the block normal noise is zero; `asked` is set when any was drawn."""

    def __init__(self):
        super().__init__()
        self.asked = False

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        zeros = {torch.randn: torch.zeros, torch.randn_like: torch.zeros_like}.get(func)
        if zeros is None:
            return func(*args, **(kwargs or {}))
        self.asked = True
        return zeros(*args, **{name: value for name, value in (kwargs or {}).items() if name != "generator"})


def _same(a: Any, b: Any) -> bool:
    """Whether two arguments of a denoiser are equal. Anything but tensors and plain values counts as equal."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[name], b[name]) for name in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    return not isinstance(a, bool | int | float | str) or a == b


def _close(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool((a - b).square().mean().sqrt() <= 0.01 * b.square().mean().sqrt())
