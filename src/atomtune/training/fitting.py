"""Compare the images of a run with what its base can draw, before it is trained: their size, whether they are
photographs, and what the base's own autoencoder loses of them.

    evenness   share of neighbouring pixels with one colour
    lost       mean squared error of the reconstruction / variance of the image

Measured at 64 pixels with moji, least, median and largest of each kind:

    images                                                    evenness            lost
    160 scenes of moji's five sets of drawings                0.76  0.89  0.98    0.01  0.07  0.35
    70 scenes of OpenMoji, which it does not know             0.74  0.83  0.91    0.03  0.22  0.54
    60 flat shapes, 30 line drawings                          0.74  0.86  0.97    0.03  0.15  0.38
    8 photographs (of scikit-learn, matplotlib and gradio)    0.08  0.32  0.77    0.05  0.12  0.38
    48 crops of them                                          0.04  0.30  0.87    0.04  0.12  0.46
    30 images of 1/f noise                                    0.00  0.00  0.00    0.32  0.39  0.46

So evenness tells photographs from drawings, and what is lost tells only what no autoencoder should lose.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from atomtune import bases
from atomtune.bases.families import family_of
from atomtune.sizes import Size
from atomtune.training.data import to_tensor

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

EVEN = 0.72  # evenness of the median image below which a base of flat drawings does not fit
ONE_COLOUR = 3  # largest difference of 255 in any channel
LOST = 0.6
FAINT = 0.01  # least variance that an image counts with, so that of one colour no loss that nobody sees is "all"
BLOWN_UP = 2  # times that a side may be enlarged
LOOKED_AT = 8  # images that are reconstructed
FLAT = {bases.MOJI: "flat emoji on plain backgrounds"}
"""The bases that draw nothing but flat drawings, and what these are."""


def evenness(image: Image.Image) -> float:
    """Share of horizontally neighbouring pixels that have one colour: high in flat drawings, low in photographs."""
    pixels = np.asarray(image.convert("RGB"), dtype=int)
    return float((np.abs(np.diff(pixels, axis=1)).max(-1) <= ONE_COLOUR).mean())


@torch.no_grad()
def lost(pipe: Any, images: Sequence[Image.Image], latents: Any) -> float:
    """Share of the images' variance that the base's autoencoder does not give back, of the first `LOOKED_AT` images."""
    vae, shares, autoencoding = pipe.vae, [], family_of(pipe).autoencoding
    device = getattr(pipe, "_execution_device", vae.device)
    for image, latent in zip(images[:LOOKED_AT], latents):
        pixels = to_tensor(image)
        back = autoencoding.decode(vae, latent[None].to(device))[0].float().cpu().clamp(-1, 1)
        shares.append(float((back - pixels).square().mean() / pixels.var(dim=(1, 2)).mean().clamp(min=FAINT)))
    return statistics.mean(shares)


def misfits(
    pipe: DiffusionPipeline,
    base: str,
    sides: Sequence[int],
    images: Sequence[Image.Image],
    latents: Float[Tensor, "n channels height width"] | list[Tensor],
) -> list[str]:
    """What makes the images hard to learn for this base: a sentence each, and none if they fit.

    `sides` are the shorter sides of the images in pixels as they were given, `images` are as they will be trained on,
    and `latents` are theirs, as the denoiser gets them.
    """
    found, size, count = [], Size(*images[0].size), len(images)
    if small := [side for side, image in zip(sides, images, strict=True) if side * BLOWN_UP < min(image.size)]:
        of = f"{len(small)} of the {count} images" if count > 1 else "the image"
        is_blown, looks = ("are", "look") if len(small) > 1 else ("is", "looks")
        found.append(
            f"{of} {is_blown} blown up, from {min(small)} to {min(size.shape)} pixels, and {looks} blurred to the "
            "base: give larger images, or a smaller --resolution."
        )
    if base in FLAT and (even := statistics.median(map(evenness, images))) < EVEN:
        found.append(
            f"{base} draws {FLAT[base]}, at {size} pixels, and these look like photographs ({even:.0%} of "
            f"neighbouring pixels have one colour, and at least {EVEN:.0%} in flat drawings), of which it makes mud: "
            "for photographs use another base, for example with --config pixart-sigma."
        )
    elif (share := lost(pipe, images, latents)) > LOST:
        found.append(
            f"the autoencoder of {base} loses {min(share, 1):.0%} of these images at {size} pixels, and what it "
            "loses cannot be drawn: use another base, or a larger --resolution."
        )
    return found
