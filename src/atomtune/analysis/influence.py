"""Influence: what single atoms do to what the model answers, and to the image.

With every other dial as it is, f(g_m) is the answer as a function of one atom's gain, g its present value:

    influence      I_m = f(g) - f(0)                  the answer with the atom on, less the answer with it off
    first order    J_m = g · ∂f/∂g_m at g_m = 0       what it would be if the layers above were linear
    nonlinearity   ‖I_m − J_m‖ / ‖I_m‖                appendix A.1 of the paper: larger in shallow layers?
    additivity     ‖Σ_m I_m − I‖ / ‖I‖                I: all of them off at once

Atoms that never fire have no influence and are not run. For the others there are two ways: one run for
each, or `torch.func.vmap` over the gains, where everything below their layer runs only once, and `torch.func.jvp` gives
f(0) and ∂f/∂g together. A later layer's top-k chooses by the primal values, so J is the slope between two choices: the
jump where the choice changes counts as nonlinearity.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from atomtune.analysis.heatmaps import tint
from atomtune.analysis.importance import replaced_gains
from atomtune.sampling import generate
from atomtune.steering import AtomBoard, Layer, board
from atomtune.tracing import trace

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

Outputs = Callable[[], Tensor]
"""Runs the model on the same input every time it is called; returns what it answers."""


@dataclass(frozen=True, eq=False)
class Influences:
    """Of the atoms of one layer that fire, whose rows are `rows`; every other atom there does nothing."""

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
        """‖full − first order‖ / ‖full‖."""
        return (self.full - self.first_order).flatten(1).norm(dim=1) / self.size


@torch.no_grad()
def influences(model: Any, address: str, outputs: Outputs, adapter: str = "default", chunk: int = 16) -> Influences:
    """Influence and first-order estimate of every atom of a layer ("L3") on the outputs, `chunk` atoms in one pass.

    `model` is an adapted model, a pipeline, or a board. Raises `UserError` when there is no such layer.
    """
    atoms = model if isinstance(model, AtomBoard) else board(model, adapter)
    dictionary = atoms[address].dictionary
    with trace(atoms.model, atoms.adapter) as seen:
        answer = outputs()
    rows = seen[Layer(dictionary).address].fired.nonzero().flatten()
    gain = dictionary.gain

    def answer_with(gains: Tensor) -> Tensor:
        with replaced_gains([dictionary], [gains]):
            return outputs()

    def off(row: Tensor) -> tuple[Tensor, Tensor]:
        one = torch.nn.functional.one_hot(row, len(gain)).to(gain)
        both: Any = torch.func.jvp(answer_with, (gain * (1 - one),), (gain * one,))
        return both

    if len(rows) == 0:
        nothing = answer.new_zeros(0, *answer.shape)
        return Influences(rows, nothing, nothing)
    with sdpa_kernel(SDPBackend.MATH):  # the flash kernel on CPU has no forward derivative
        without, slope = torch.func.vmap(off, chunk_size=chunk, randomness="same")(rows)
        answer = outputs()  # by the same kernel, so that rounding is not taken for an influence
    return Influences(rows, answer - without, slope)


@torch.no_grad()
def influence(model: Any, outputs: Outputs, *addresses: str, adapter: str = "default") -> Tensor:
    """The answer less the answer with these atoms or layers silenced together."""
    atoms = model if isinstance(model, AtomBoard) else board(model, adapter)
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


def difference(on: Image.Image, off: Image.Image, full: float = 0.25) -> Image.Image:
    """`on` in pale grey, red where it is lighter than `off` and blue where it is darker (Fig. 1c of the paper).

    The strength is the largest change of the three channels, so that a change of hue alone shows too; a change of
    `full` of the range from black to white is strongest.
    """
    changed = _pixels(on) - _pixels(off)
    strength = np.abs(changed).max(axis=2) * np.where(changed.mean(axis=2) >= 0, 1, -1)
    return tint(on, strength, full)


def _pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB"), np.float32) / 255
