"""Influence: what one atom does to the picture, seen by drawing it again with that atom silent.

on   = the picture as the adapter draws it
off  = the same prompt and noise with g_m = 0
difference = on - off, red where the atom adds light, blue where it takes light away (Fig. 1c of the paper)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from atomtune.analysis.heatmaps import tint
from atomtune.atoms import board
from atomtune.sampling import generate

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


def influence_picture(
    pipe: DiffusionPipeline, address: str, prompt: str, seed: int = 0
) -> tuple[Image.Image, Image.Image, Image.Image]:
    """The prompt drawn with the atom at `address` on and off, and their difference."""
    on = generate(pipe, prompt, seed=seed)[0].image
    with board(pipe).muted(address):
        off = generate(pipe, prompt, seed=seed)[0].image
    return on, off, difference(on, off)


def change(on: Image.Image, off: Image.Image) -> float:
    """Mean absolute difference of two pictures, as a share of the range from black to white."""
    return float(np.abs(_pixels(on) - _pixels(off)).mean())


def difference(on: Image.Image, off: Image.Image, full: float = 0.25) -> Image.Image:
    """`on` in pale grey, red where it is lighter than `off` and blue where it is darker.

    The strength is the largest change of the three channels, so that a change of hue alone shows too; a change of
    `full` of the range from black to white is opaque.
    """
    changed = _pixels(on) - _pixels(off)
    strength = np.abs(changed).max(axis=2) * np.where(changed.mean(axis=2) >= 0, 1, -1)
    return tint(on, strength, full)


def _pixels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture.convert("RGB"), np.float32) / 255
