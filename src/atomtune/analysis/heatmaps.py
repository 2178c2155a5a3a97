"""Heatmaps: where in an image an atom acts. |S[:, m]|, one number for each token, drawn over the image.

    with trace(model, codes=True) as t:
        image = generate(pipe, "a sks teapot")[0].image
    overlay(image, t["L3[139]"].maps(magnitude=True)[0]).save("L3-139.png")

Three colours, and each means one thing: green is how strongly an atom acts (the sign of a code means nothing, because
-s and -d are the same atom), red is lighter and blue is darker than without it. Colour-blind people can distinguish
them. The image below is grey, so that its own colours are not mistaken for these, and it shows through the strongest
colour, so that an atom that acts everywhere does not hide it.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from atomtune.errors import UserError
from atomtune.recording import AtomTrace, LayerTrace
from atomtune.tracing import Trace

GREEN = (0, 112, 104)
RED = (202, 0, 32)
BLUE = (5, 97, 196)
THROUGH = 0.5  # share of the way to white by which a full colour is paler on a white image than on a black one
PHASES = ("early", "middle", "late")  # thirds of the timesteps, the noisiest first


def token_grid(tokens: int, aspect: float = 1.0) -> tuple[int, int]:
    """Rows and columns of the grid of `tokens` tokens over an image whose width / height is `aspect`.

    Patches are square, so the grid has the shape of the image in every layer, also where the layer works at a lower
    resolution. Raises `UserError` when the tokens do not form such a grid.
    """
    columns = max(1, round((tokens * aspect) ** 0.5))
    if tokens % columns or abs(tokens // columns - columns / aspect) > 0.5:
        raise UserError(
            f"{tokens} tokens do not form a grid over an image {aspect:g} times as wide as it is high: heatmaps need "
            "a layer whose tokens are the patches of the image."
        )
    return tokens // columns, columns


def grid_of(layer: LayerTrace, tokens: int, aspect: float) -> tuple[int, int] | None:
    """Rows and columns of the image's tokens in a layer, None if it has none. Of an unfamiliar base all tokens are
    those of the image if they could be."""
    if layer.grid or not layer.sees_image:
        return layer.grid
    try:
        return token_grid(tokens, aspect)
    except UserError:
        return None


def phases(timesteps: Collection[float]) -> dict[str, list[float]]:
    """Thirds of the timesteps by name, the noisiest first; fewer of them when there are fewer than three steps."""
    ordered = np.array(sorted(timesteps, reverse=True))
    parts = np.array_split(ordered, len(PHASES))
    return {name: part.tolist() for name, part in zip(PHASES, parts) if len(part)}


def acting_at(
    traced: Trace, x: int | float, y: int | float, aspect: int | float = 1.0, sample: int = 0, count: int = 10
) -> list[tuple[AtomTrace, float]]:
    """The atoms that add most at one place of an image: (atom, mean over the steps of |s_m| · ‖d_m‖ there), the
    strongest first; none that are silent there.

    `x` and `y` are shares of the width and height, from the left and from the top, 0 to 1; `aspect` is width / height.
    Layers whose tokens are not patches of the image, such as those of the words, are left out. Raises `UserError` if
    the place is outside, or if the trace kept no codes.
    """
    if not (0 <= x <= 1 and 0 <= y <= 1):
        raise UserError(f"a place in an image has x and y from 0 to 1, got {x:g} and {y:g}.")
    found = []
    for layer in traced.layers:
        if not layer.sees_image:
            continue
        maps = layer.maps(magnitude=True)[sample]
        if (grid := grid_of(layer, len(maps), aspect)) is None:
            continue
        rows, columns = grid
        token = min(int(y * rows), rows - 1) * columns + min(int(x * columns), columns - 1)
        energies = maps[token] * layer.norms.cpu()
        for row in energies.topk(min(count, len(energies))).indices.tolist():
            if energies[row] > 0:
                found.append((AtomTrace(layer, row), float(energies[row])))
    return sorted(found, key=lambda pair: -pair[1])[:count]


def acting_words(atom: AtomTrace, pipe: Any, prompt: str, sample: int = 0, count: int = 6) -> list[tuple[str, float]]:
    """For an atom whose tokens are those of the prompt: the words, or the parts into which `pipe.tokenizer` cuts them
    ("…pot"), at which it acts in a sample, and its mean |s_m| there, the strongest first. Raises `UserError` if the
    trace kept no codes."""
    strengths = atom.means(magnitude=True)[sample].tolist()
    words = _words(pipe.tokenizer, prompt)
    found = [(word, strength) for word, strength in zip(words, strengths) if strength > 0]
    return sorted(found, key=lambda pair: -pair[1])[:count]


def _words(tokenizer: Any, prompt: str) -> list[str]:
    """A text for each token of the prompt; of a tokenizer that does not say where its tokens are, the tokens."""
    told = tokenizer(prompt, return_offsets_mapping=tokenizer.is_fast)
    words = tokenizer.convert_ids_to_tokens(told.input_ids)
    for number, (start, end) in enumerate(told.get("offset_mapping", ())):
        if part := prompt[start:end].strip():  # else it marks the start or the end
            cut = "…" * prompt[:end][: -len(part)][-1:].isalnum(), "…" * prompt[end : end + 1].isalnum()
            words[number] = part.join(cut) if part.isalnum() else part
    return words


def overlay(
    image: Image.Image,
    heat: Float[Tensor, " tokens"] | Float[np.ndarray, " tokens"],
    full: float | None = None,
    size: int | None = None,
) -> Image.Image:
    """The image in grey with |heat| over it: green, and transparent where it is 0.

    `full` is the strength that gets the full colour, by default the largest; give the same value for images
    that are to be compared. `size` is the width of the result in pixels (the image's own by default).
    """
    values = np.abs(np.asarray(heat, dtype=np.float32))
    rows, columns = token_grid(len(values), image.width / image.height)
    width = size or image.width
    shape = (width, round(width * image.height / image.width))
    cells = Image.fromarray(values.reshape(rows, columns))
    smooth = np.asarray(cells.resize(shape, Image.Resampling.BILINEAR))
    return tint(image.resize(shape, Image.Resampling.BICUBIC), smooth, full or float(values.max()), GREEN)


def tint(
    image: Image.Image,
    strength: Float[np.ndarray, "height width"],
    full: float,
    above: tuple[int, int, int] = RED,
    below: tuple[int, int, int] = BLUE,
) -> Image.Image:
    """The image in pale grey, coloured by a strength at each pixel, with the full colour, `above` or `below` 0, from
    `full` on. A coloured pixel is as much lighter where the image is lighter, so the image is always seen."""
    light = np.asarray(image.convert("L"), np.float32)[..., None] / 255
    grey = 110 + 127 * light  # pale: the colours show on all of it
    opacity = np.clip(np.abs(strength) / full if full > 0 else np.zeros_like(strength), 0, 1)[..., None] ** 0.7
    colour = np.where(strength[..., None] > 0, np.array(above, np.float32), np.array(below, np.float32))
    colour += THROUGH * light * (255 - colour)
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
