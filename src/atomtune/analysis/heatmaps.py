"""Heatmaps: where in a picture an atom acts. S[:, m], one number a token, laid on the picture the tokens make up.

    with trace(model, codes=True) as t:
        picture = generate(pipe, "a sks teapot")[0].image
    overlay(picture, t.layers[3].maps(139)[0]).save("L3-139.png")

One colour map everywhere: red is positive, blue negative, and the stronger the less transparent. Red and blue of this
kind are told apart by colour-blind people too; the picture below is grey, so no colour of its own is mistaken for heat.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from atomtune.errors import UserError
from atomtune.tracing import LayerTrace

RED, BLUE = (202, 0, 32), (5, 97, 196)  # positive, negative
STRONGEST = 0.85  # opacity: the picture shows through even where an atom acts everywhere
PHASES = ("early", "middle", "late")  # thirds of the timesteps, the noisiest first


def token_grid(tokens: int, aspect: float = 1.0) -> tuple[int, int]:
    """Rows and columns of the grid that `tokens` tokens form in a picture of this width / height.

    Patches are square, so the shape of the picture is the shape of the grid, in every layer, whatever it downsamples
    by. Raises `UserError` when they do not form one.
    """
    columns = max(1, round((tokens * aspect) ** 0.5))
    if tokens % columns or abs(tokens // columns - columns / aspect) > 0.5:
        raise UserError(
            f"{tokens} tokens do not form a grid over a picture {aspect:g} times as wide as it is high: heatmaps need "
            "a layer whose tokens are the patches of the picture."
        )
    return tokens // columns, columns


def phases(timesteps: Collection[float]) -> dict[str, list[float]]:
    """Thirds of the timesteps by name, the noisiest first; fewer of them when there are fewer than three steps."""
    ordered = np.array(sorted(timesteps, reverse=True))
    parts = np.array_split(ordered, len(PHASES))
    return {name: part.tolist() for name, part in zip(PHASES, parts) if len(part)}


def layer_maps(
    layer: LayerTrace, timesteps: Collection[float] | None = None
) -> tuple[Float[Tensor, "samples tokens atoms"], Float[Tensor, "samples tokens atoms"]]:
    """Mean of s_m and of |s_m| over these timesteps (all of them by default), at every token, for all atoms of a layer.

    `LayerTrace.maps` is the same for one atom; this is one pass for all. The trace must hold codes (`codes=True`);
    samples are those it holds codes of, in order. Raises `UserError` when it holds none.
    """
    calls = [call for call in layer.codes if timesteps is None or call.timestep in timesteps]
    if not calls:
        raise UserError("this trace kept no codes at these timesteps: use trace(model, codes=True).")
    first = min(call.first_sample for call in calls)
    samples = max(call.first_sample + call.shape[0] for call in calls) - first
    _, tokens, atoms = calls[0].shape
    signed, magnitude = torch.zeros(2, samples, tokens, atoms)
    count = torch.zeros(samples, 1, 1)
    for call in calls:
        where = call.indices.cpu().long() + (call.first_sample - first) * tokens * atoms
        values = call.values.float().cpu()
        signed.view(-1).index_add_(0, where, values)
        magnitude.view(-1).index_add_(0, where, values.abs())
        count[call.first_sample - first :][: call.shape[0]] += 1
    return signed / count, magnitude / count


def overlay(
    picture: Image.Image,
    heat: Float[Tensor, " tokens"] | Float[np.ndarray, " tokens"],
    full: float | None = None,
    size: int | None = None,
) -> Image.Image:
    """The picture in grey with `heat` over it: red positive, blue negative, transparent where it is 0.

    `full` is the strength that is shown strongest, by default the largest |heat|; give the same one to pictures that
    are to be compared. `size` is the width of the result in pixels (the picture's own by default).
    """
    values = np.asarray(heat, dtype=np.float32)
    rows, columns = token_grid(len(values), picture.width / picture.height)
    width = size or picture.width
    shape = (width, round(width * picture.height / picture.width))
    cells = Image.fromarray(values.reshape(rows, columns))
    smooth = np.asarray(cells.resize(shape, Image.Resampling.BILINEAR))
    return tint(picture.resize(shape, Image.Resampling.BICUBIC), smooth, full or float(np.abs(values).max()))


def tint(picture: Image.Image, strength: Float[np.ndarray, "height width"], full: float) -> Image.Image:
    """The picture in pale grey, coloured by a signed strength at each pixel; |strength| >= `full` is strongest."""
    grey = 0.5 * np.asarray(picture.convert("L"), np.float32)[..., None] + 110  # pale: both colours show on all of it
    opacity = np.clip(np.abs(strength) / full if full > 0 else np.zeros_like(strength), 0, 1)[..., None] ** 0.7
    opacity *= STRONGEST
    colour = np.where(strength[..., None] > 0, np.array(RED, np.float32), np.array(BLUE, np.float32))
    mixed = grey * (1 - opacity) + colour * opacity
    return Image.fromarray(mixed.round().clip(0, 255).astype(np.uint8))


def pooled(
    maps: Float[Tensor, "samples tokens atoms"], grid: tuple[int, int], largest: int
) -> Float[Tensor, "samples cells atoms"]:
    """Averaged over blocks of tokens until the grid has at most `largest` rows and columns."""
    rows, columns = grid
    if max(grid) <= largest:
        return maps
    shape = (min(rows, largest), min(columns, largest))
    images = maps.unflatten(1, grid).permute(0, 3, 1, 2)  # [samples, atoms, rows, columns]
    return torch.nn.functional.adaptive_avg_pool2d(images, shape).permute(0, 2, 3, 1).flatten(1, 2)
