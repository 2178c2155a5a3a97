"""OpenMoji, a style that moji has never seen: ten of its drawings to learn from, and what tells it from the five.

The set is CC-BY-SA-4.0 (openmoji.org); it is fetched from the npm registry when an experiment needs it and not shipped.
"""

import json
import random
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

import atomtune
from atomtune.metrics.pixels import SAME, as_array
from atomtune.moji.names import HELD_OUT_NAMES
from atomtune.moji.scenes import BACKGROUNDS, Scene, caption, compose
from experiments.common.subjects import CACHE, weights_digest
from pretraining.drawings import Drawings, icon_set, render, svg

VERSION = "1.2.29"
STYLE = "openmoji"
DARK = 90  # luminance of 255
LEARNT = {  # what the style is learnt from, each on a background of another colour
    "cat": "yellow",
    "elephant": "pink",
    "tropical-fish": "white",
    "banana": "blue",
    "hamburger": "green",
    "automobile": "orange",
    "sailboat": "purple",
    "house": "gray",
    "umbrella": "white",
    "rose": "yellow",
}


@cache
def _icons() -> dict:
    return icon_set(STYLE, VERSION)


@cache
def drawing(name: str) -> Image.Image:
    """The RGBA drawing of a name, as large in its square as those of the other sets are."""
    document = svg(_icons(), name)
    assert document is not None, f"OpenMoji has no {name}"
    large = render(document, 256)
    left, top, right, bottom = large.getbbox() or (0, 0, 256, 256)
    side = max(right - left, bottom - top)
    square = Image.new("RGBA", (side, side))
    square.paste(large.crop((left, top, right, bottom)), ((side - right + left) // 2, (side - bottom + top) // 2))
    return square


def picture(name: str, background: str) -> Image.Image:
    return compose(drawing(name), Scene(name, STYLE, background))


def train(**options: Any) -> Path:
    """Learn the style, with the options of `customize`; returns the run's folder. Kept, never repeated."""
    words = "-".join(f"{value}" for _, value in sorted(options.items())) or "atoms"
    folder = CACHE / weights_digest() / f"{STYLE}-{words}"
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    lines = []
    for name, background in LEARNT.items():
        picture(name, background).save(folder / "pictures" / f"{name}.png")
        text = caption(Scene(name, STYLE, background))
        lines.append(json.dumps({"file_name": f"{name}.png", "text": text}) + "\n")
    (folder / "pictures" / "metadata.jsonl").write_text("".join(lines))
    options = {
        "config": "moji-paper",
        "class_name": "drawing",
        "token": STYLE,
        "sample_every": 0,
        "checkpoint_every": 1_000_000,
    } | options
    atomtune.customize(folder / "pictures", out=folder / "run", report_to="none", **options)
    return folder / "run"


def outline(image: Image.Image) -> float:
    """How much of a drawing's rim is dark, 0 to 1: OpenMoji draws a black line around everything, the five do not.

    The rim is the two outermost pixels of what differs from the background, which must not be black itself.
    """
    pixels = as_array(image).astype(float)
    border = np.concatenate([pixels[:2].reshape(-1, 3), pixels[-2:].reshape(-1, 3), *pixels[:, :2], *pixels[:, -2:]])
    there = np.linalg.norm(pixels - np.median(border, axis=0), axis=2) > SAME
    inside = np.asarray(Image.fromarray(there).convert("L").filter(ImageFilter.MinFilter(5))) > 0
    rim = there & ~inside
    return float((pixels[rim] @ (0.299, 0.587, 0.114) < DARK).mean()) if rim.any() else 0.0


def outlines_of_real_drawings() -> dict[str, float]:
    """How well `outline` tells real drawings apart, on the names that moji does not know: its mean for each style, and
    the chance that an OpenMoji drawing has more of it than one of the five (`auc`)."""
    drawings, rng = Drawings(), random.Random(0)
    colours = [colour for colour in BACKGROUNDS if colour != "black"]
    values: dict[str, list[float]] = {}
    for name in HELD_OUT_NAMES:
        for style in [*drawings.styles[name], STYLE]:
            colour = rng.choice(colours)
            image = picture(name, colour) if style == STYLE else drawings.picture(Scene(name, style, colour))
            values.setdefault(style, []).append(outline(image))
    own, others = np.array(values[STYLE]), np.concatenate([values[style] for style in values if style != STYLE])
    more = (own[:, None] > others).mean() + 0.5 * (own[:, None] == others).mean()
    return {style: float(np.mean(value)) for style, value in values.items()} | {"auc": float(more)}
