"""Two styles that moji has never seen: ten drawings of each to learn from, and what tells them from the five it knows.

The sets are fetched from the npm registry when an experiment needs them, and not shipped: OpenMoji (openmoji.org,
CC-BY-SA-4.0) draws a black line around everything, Streamline (Streamline's emojis, CC-BY-4.0) a thin dark one, and a
shadow on the ground.
"""

import json
import random
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

import atomtune
from atomtune.metrics import load_judge
from atomtune.metrics.pixels import SAME, as_array
from atomtune.moji.names import HELD_OUT_NAMES
from atomtune.moji.scenes import BACKGROUNDS, Scene, caption, compose
from experiments.common.subjects import CACHE, PLAIN, weights_digest
from pretraining.drawings import Drawings, icon_set, render, svg

DARK = 90  # luminance of 255


@dataclass(frozen=True)
class Style:
    """A style: its word in prompts, where its drawings come from, and what it is learnt from."""

    word: str
    title: str
    icons: str
    version: str
    learnt: dict[str, str]
    """Names of things that moji knows, each with a background of another colour."""
    renamed: dict[str, str] = field(default_factory=dict)
    """Names that the set spells otherwise."""

    def drawing(self, name: str) -> Image.Image | None:
        """The RGBA drawing of a name, as large in its square as those of the other sets are; None if there is none."""
        return _drawing(self.icons, self.version, self.renamed.get(name, name))

    def picture(self, name: str, background: str, size: str = "normal") -> Image.Image:
        """A scene with it."""
        drawing = self.drawing(name)
        assert drawing is not None, f"{self.title} has no {name}"
        return compose(drawing, Scene(name, self.word, background, size))

    def train(self, **options: Any) -> Path:
        """Learn the style, with the options of `customize`; returns the run's folder. Kept, never repeated."""
        words = "-".join(f"{value}" for _, value in sorted(options.items())) or "atoms"
        folder = CACHE / weights_digest() / f"{self.word}-{words}"
        (folder / "pictures").mkdir(parents=True, exist_ok=True)
        lines = []
        for name, background in self.learnt.items():
            self.picture(name, background).save(folder / "pictures" / f"{name}.png")
            text = caption(Scene(name, self.word, background))
            lines.append(json.dumps({"file_name": f"{name}.png", "text": text}) + "\n")
        (folder / "pictures" / "metadata.jsonl").write_text("".join(lines))
        options = {
            "config": "moji-paper",
            "class_name": "drawing",
            "token": self.word,
            "sample_every": 0,
            "checkpoint_every": 1_000_000,
        } | options
        atomtune.customize(folder / "pictures", out=folder / "run", **PLAIN | options)
        return folder / "run"

    def told_apart(self) -> dict[str, Any]:
        """How well `outline`, and fidelity to the style's own drawing of the same thing (on another background, at
        another size), tell its real drawings from those of moji's five styles, on the names that moji does not know.

        Of both the mean for each style, and the chance that a drawing of this style has more of it than another has
        (`auc`); `names`: how many of these names it draws.
        """
        drawings, judge, rng = Drawings(), load_judge(), random.Random(0)
        colours = [colour for colour in BACKGROUNDS if colour != "black"]
        outlines: dict[str, list[float]] = {}
        likeness: dict[str, list[float]] = {}
        for name in HELD_OUT_NAMES:
            if self.drawing(name) is None:
                continue
            own = self.picture(name, "white", "large")
            for style in [*drawings.styles[name], self.word]:
                colour = rng.choice(colours)
                known = style != self.word
                image = drawings.picture(Scene(name, style, colour)) if known else self.picture(name, colour)
                outlines.setdefault(style, []).append(outline(image))
                likeness.setdefault(style, []).append(float(judge.fidelity([image], [own])[0]))
        own = len(outlines[self.word])
        return {"names": own, "outline": self._means(outlines), "likeness": self._means(likeness)}

    def _means(self, values: dict[str, list[float]]) -> dict[str, float]:
        own, others = np.array(values[self.word]), np.concatenate([values[style] for style in values])
        others = others[: -len(own)]  # its own are the last
        more = (own[:, None] > others).mean() + 0.5 * (own[:, None] == others).mean()
        return {style: float(np.mean(value)) for style, value in values.items()} | {"auc": float(more)}


@cache
def _drawing(icons: str, version: str, name: str) -> Image.Image | None:
    if (document := svg(icon_set(icons, version), name)) is None:
        return None
    large = render(document, 256)
    left, top, right, bottom = large.getbbox() or (0, 0, 256, 256)
    side = max(right - left, bottom - top)
    square = Image.new("RGBA", (side, side))
    square.paste(large.crop((left, top, right, bottom)), ((side - right + left) // 2, (side - bottom + top) // 2))
    return square


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


OPENMOJI = Style(
    "openmoji",
    "OpenMoji",
    "openmoji",
    "1.2.29",
    {
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
    },
)
STREAMLINE = Style(
    "streamline",
    "Streamline",
    "streamline-emojis",
    "1.2.4",
    {
        "cat": "yellow",
        "elephant": "pink",
        "tropical-fish": "white",
        "pear": "blue",
        "cherries": "green",
        "automobile": "orange",
        "sailboat": "purple",
        "trumpet": "gray",
        "umbrella": "white",
        "pig": "yellow",
    },
    {"penguin": "penguin-1", "cactus": "cactus-1", "strawberry": "strawberry-1"},
)
STYLES = {style.word: style for style in (OPENMOJI, STREAMLINE)}
