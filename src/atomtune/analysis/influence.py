"""Influence: how single atoms change the output of the model, and the image.

With all other dials unchanged, f(g_m) is the model's output as a function of one atom's gain, and g the present gain:

    influence      I_m = f(g) - f(0)                  the output with the atom, minus the output without it
    first order    J_m = g · ∂f/∂g_m at g_m = 0       what I_m would be if the layers above were linear
    nonlinearity   ‖I_m − J_m‖ / ‖I_m‖                appendix A.1 of the paper: larger in shallow layers?
    additivity     ‖Σ_m I_m − I‖ / ‖I‖                I: all atoms off at once
    size           ‖g · ∂f/∂g_m‖ / ‖f‖ at g           for all atoms of all layers at once, see `influence_sizes`

Atoms that never fire have no influence and are not run. For the others there are two ways: one run for each atom
(`influence`), or `torch.func.vmap` over the gains (`influences`), where everything below their layer runs only once and
`torch.func.jvp` gives f(0) and ∂f/∂g together. J is the slope while top-k in later layers selects the same atoms: a
jump where the selection changes counts as nonlinearity.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate.utils import recursively_apply
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from atomtune.analysis.heatmaps import tint
from atomtune.analysis.importance import replaced_gains
from atomtune.atoms import Layer
from atomtune.errors import UserError
from atomtune.sampling import generate
from atomtune.steering import AtomBoard, board
from atomtune.tracing import bare_model, timesteps, trace

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

Outputs = Callable[[], Tensor]
"""Runs the model on the same input every time it is called; returns the output."""


@dataclass(frozen=True, eq=False)
class Influences:
    """Influence of the atoms of one layer that fire, in the order of `rows`. The other atoms have none."""

    rows: Int[Tensor, " fired"]
    full: Float[Tensor, "fired ..."]
    """f(g) − f(0)."""
    first_order: Float[Tensor, "fired ..."]
    """g · ∂f/∂g at 0."""

    @property
    def size(self) -> Float[Tensor, " fired"]:
        """‖full‖."""
        return self.full.flatten(1).norm(dim=1)

    @property
    def nonlinearity(self) -> Float[Tensor, " fired"]:
        """‖full − first order‖ / ‖full‖; 0 of an atom that fires where nothing is read, as in a text's padding."""
        wrong = (self.full - self.first_order).flatten(1).norm(dim=1)
        return wrong / self.size.where(self.size > 0, 1)


@torch.no_grad()
def influences(model: Any, address: str, outputs: Outputs, adapter: str = "default", chunk: int = 16) -> Influences:
    """Influence and first-order estimate of every atom of a layer ("L3"), or of some of its atoms ("L3[0:40]"), on the
    outputs, `chunk` atoms in one pass.

    `model` is an adapted model, a pipeline, or a board. Raises `UserError` when there is no such layer.
    """
    atoms = _board(model, adapter)
    found = atoms[address]
    dictionary = found.dictionary
    with trace(atoms.model, atoms.adapter) as seen:
        output = outputs()
    fired = seen[Layer(dictionary).address].fired > 0
    rows = (fired & found.mask).nonzero().flatten()
    gain = dictionary.gain

    def output_with(gains: Tensor) -> Tensor:
        with replaced_gains([dictionary], [gains]):
            return outputs()

    def off(row: Tensor) -> tuple[Tensor, Tensor]:
        one = torch.nn.functional.one_hot(row, len(gain)).to(gain)
        both: Any = torch.func.jvp(output_with, (gain * (1 - one),), (gain * one,))
        return both

    if len(rows) == 0:
        nothing = output.new_zeros(0, *output.shape)
        return Influences(rows, nothing, nothing)
    with sdpa_kernel(SDPBackend.MATH):  # the flash kernel on CPU has no forward derivative
        without, slope = torch.func.vmap(off, chunk_size=chunk, randomness="same")(rows)
        output = outputs()  # with the same kernel, so that rounding is not taken for an influence
    return Influences(rows, output - without, slope)


def influence_sizes(
    model: Any, outputs: Iterable[Outputs], draws: int = 8, seed: int = 0, adapter: str = "default"
) -> list[Float[Tensor, " atoms"]]:
    """How much the output would change without an atom, to first order, as a share of the output: [M] for each layer.

    One backward pass has a projection vᵀJ_m for every atom m of every layer; over random signs v

        ‖J_m‖² = E (vᵀ J_m)²        J_m = g · ∂f/∂g_m

    so `draws` of them for each of the `outputs` are enough to rank the atoms. The mean squares over all outputs are
    returned as √(Σ ‖J_m‖² / Σ ‖f‖²). What an atom adds to its layer (`energy`) may be lost in the layers above, or may
    be on words that no place of the image reads; this is not misled by either. `model` is an adapted model, a
    pipeline, or a board. Raises `UserError` if nothing was run, or numbers were not finite.
    """
    atoms, generator = _board(model, adapter), torch.Generator().manual_seed(seed)
    with torch.inference_mode(False), torch.enable_grad(), _checkpointed(atoms.model):
        gains = [dictionary.gain.detach().clone().requires_grad_() for dictionary in atoms.dictionaries]
        sizes, whole = [torch.zeros_like(gain) for gain in gains], 0.0
        with replaced_gains(atoms.dictionaries, gains):
            for run in outputs:
                output = run()
                whole += float(output.detach().double().square().sum())
                for draw in range(draws):
                    signs = torch.randint(0, 2, output.shape, generator=generator).mul_(2).sub_(1).to(output)
                    more = draw + 1 < draws
                    slopes = torch.autograd.grad(output, gains, signs, retain_graph=more, allow_unused=True)
                    for size, gain, slope in zip(sizes, gains, slopes):
                        if slope is not None:
                            size += (gain.detach() * slope).square() / draws
    if not whole:
        raise UserError("there is no influence to measure, because nothing was run, or all answers were zero.")
    sizes = [(size / whole).sqrt() for size in sizes]
    if not all(bool(size.isfinite().all()) for size in sizes):
        raise UserError("the influence cannot be measured, because numbers of the model were not finite.")
    return sizes


def _board(model: Any, adapter: str) -> AtomBoard:
    return model if isinstance(model, AtomBoard) else board(model, adapter)


@contextmanager
def _checkpointed(model: Any) -> Iterator[None]:
    """On an accelerator, where memory is short, a diffusers model keeps only the inputs of its blocks for the backward
    passes of the block, and computes the rest again."""
    can = getattr(model, "_supports_gradient_checkpointing", False) and model.device.type != "cpu"
    if can and not model.is_gradient_checkpointing:
        model.enable_gradient_checkpointing()
    else:
        can = False
    try:
        yield
    finally:
        if can:
            model.disable_gradient_checkpointing()


@dataclass(frozen=True, eq=False)
class Call:
    """A run of a denoiser, to be repeated."""

    model: Any
    args: tuple
    kwargs: dict[str, Any]
    time: float | None
    """The sampler's timestep."""

    def __call__(self) -> Tensor:
        """The part of the answer that the sampler uses, not a learned variance."""
        answer = self.model(*self.args, **self.kwargs)[0]
        if not isinstance(answer, Tensor):
            return torch.stack(answer)
        noisy = self.args[0] if self.args else next(iter(self.kwargs.values()))
        twice = isinstance(noisy, Tensor) and noisy.ndim == 4 and answer.shape[1] == 2 * noisy.shape[1]
        return answer.chunk(2, dim=1)[0] if twice else answer


@contextmanager
def keeping_calls(model: Any, calls: list[Call]) -> Iterator[None]:
    """Add to `calls` each run of the denoiser of a pipeline in the block, to be repeated with `influence_sizes`."""
    denoiser = bare_model(model)

    def keep(_module: Any, args: tuple, kwargs: dict) -> None:
        times = timesteps(denoiser, args, kwargs)
        args, kwargs = recursively_apply(_without_inference, (args, kwargs))
        calls.append(Call(denoiser, args, kwargs, None if times is None else float(times[0])))

    hook = denoiser.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()


@torch.inference_mode(False)
def _without_inference(tensor: Tensor) -> Tensor:
    """The tensor, or a copy through which gradients can flow, if it was made in `torch.inference_mode`."""
    return tensor.clone() if tensor.is_inference() else tensor


def some_of(calls: Sequence[Call], count: int = 3) -> list[Call]:
    """The runs of `count` steps of a drawing, evenly spaced, of few steps with the last. Guidance may take two a
    step."""
    times = list(dict.fromkeys(call.time for call in calls))
    some = {times[min((place + 1) * len(times) // (count + 1), len(times) - 1)] for place in range(count)}
    return [call for call in calls if call.time in some]


@torch.no_grad()
def influence(model: Any, outputs: Outputs, *addresses: str, adapter: str = "default") -> Tensor:
    """The output minus the output with these atoms or layers silenced together."""
    atoms = _board(model, adapter)
    on = outputs()
    with atoms.muted(*addresses):
        return on - outputs()


def additivity_error(parts: Float[Tensor, "atoms ..."], whole: Float[Tensor, "..."]) -> float:
    """‖Σ_m I_m − I‖ / ‖I‖: 0 when the influences of single atoms add up to that of all of them together."""
    return float((parts.sum(0) - whole).norm() / whole.norm())


def influence_image(
    pipe: DiffusionPipeline, address: str, prompt: str, seed: int = 0, adapter: str = "default", **options: Any
) -> tuple[Image.Image, Image.Image, Image.Image]:
    """The prompt drawn with the atom or layer at `address` on and off from the same noise, and their `difference`.

    `options` go to `generate`.
    """
    on = generate(pipe, prompt, seed=seed, **options)[0].image
    with board(pipe, adapter).muted(address):
        off = generate(pipe, prompt, seed=seed, **options)[0].image
    return on, off, difference(on, off)


def change(on: Image.Image, off: Image.Image) -> float:
    """Mean absolute difference of two images, as a share of the range from black to white."""
    return float(np.abs(_pixels(on) - _pixels(off)).mean())


def largest_changes(on: Image.Image, off: Image.Image) -> Float[np.ndarray, "height width"]:
    """At each pixel the largest absolute difference of the three channels, as a share of the range from black to
    white."""
    return np.abs(_pixels(on) - _pixels(off)).max(axis=2)


def difference(on: Image.Image, off: Image.Image, full: float = 0.25) -> Image.Image:
    """`on` in pale grey, red where it is lighter than `off` and blue where it is darker (Fig. 1c of the paper).

    The strength is the largest change of the three channels, so that a change of hue alone is visible too. A
    change of `full`, as a share of the range from black to white, gets the full colour.
    """
    changed = _pixels(on) - _pixels(off)
    strength = largest_changes(on, off) * np.where(changed.mean(axis=2) >= 0, 1, -1)
    return tint(on, strength, full)


def _pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB"), np.float32) / 255
