"""Aspect buckets: the sizes, all of about one area, to which images of different shapes are scaled and cropped.

    bucket = argmin over sizes of |log(w/h) - log(W/H)|        w × h: the image, W × H: a size of the list

The sides are multiples of what the base needs, and of about a sixteenth of the side of the square (64 at 1024 pixels,
as in SDXL's own list), from half to twice this side. The resolution of the run is one of them.
"""

from __future__ import annotations

import math

from atomtune.sizes import Size

STEPS = 16  # steps of a side in the side of the square


def sizes(resolution: Size, multiple: int) -> list[Size]:
    """All buckets of about the area of `resolution`, itself first."""
    area = resolution.width * resolution.height
    side = math.sqrt(area)
    step = multiple * max(1, round(side / STEPS / multiple))
    found = [resolution]
    for width in range(step, math.floor(2 * side) + 1, step):
        height = step * max(1, round(area / width / step))
        if side / 2 <= width and side / 2 <= height <= 2 * side:
            found.append(Size(width, height))
    return list(dict.fromkeys(found))


def nearest(width: int, height: int, choices: list[Size]) -> Size:
    """The size whose shape is most like that of an image; of two, the first."""
    shape = math.log(width / height)
    return min(choices, key=lambda size: abs(math.log(size.width / size.height) - shape))


def crop_corner(width: int, height: int, size: Size) -> tuple[int, int]:
    """(top, left) of the central crop to `size`, in pixels of the image of this width and height after it was scaled
    until it covers `size`: SDXL's `crops_coords_top_left`."""
    scale = max(size.width / width, size.height / height)
    return round((height * scale - size.height) / 2), round((width * scale - size.width) / 2)
