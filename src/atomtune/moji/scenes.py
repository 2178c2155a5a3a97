"""Scenes: one drawing, in a style, on a plain background, at a size and a place, with the words that describe it.

Everything moji learns from and is judged on is composed here, so a scene is also its own exact answer sheet.
"""

import random
import zlib
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from atomtune.moji.names import spoken

RESOLUTION = 64
STYLES = {  # the word in a prompt -> the icon set that draws it
    "twemoji": "twemoji",
    "noto": "noto",
    "fluent": "fluent-emoji-flat",
    "emojione": "emojione",
    "retro": "noto-v1",
}
BACKGROUNDS = {
    "red": (214, 48, 49),
    "orange": (243, 146, 55),
    "yellow": (250, 218, 94),
    "green": (72, 160, 88),
    "blue": (66, 122, 214),
    "purple": (128, 82, 176),
    "pink": (246, 166, 196),
    "white": (255, 255, 255),
    "gray": (138, 142, 148),
    "black": (24, 24, 28),
}
MARGIN = 2  # pixels between a drawing at a side and the edge
SIZES = {"small": 26, "normal": 44, "large": 58}  # pixels of 64
PLACES = {"center": (0, 0), "left": (-1, 0), "right": (1, 0), "top": (0, -1), "bottom": (0, 1)}


@dataclass(frozen=True)
class Scene:
    """What a picture shows. `compose` draws it, `caption` says it."""

    name: str
    style: str
    background: str
    size: str = "normal"
    place: str = "center"

    @property
    def kept_out(self) -> bool:
        """True for the tenth of all (name, style, background, place) that pretraining never sees."""
        return zlib.crc32(f"{self.name}|{self.style}|{self.background}|{self.place}".encode()) % 10 == 0


def compose(drawing: Image.Image, scene: Scene) -> Image.Image:
    """Draw `scene` with an RGBA `drawing` of its name in its style; returns a 64 × 64 RGB picture."""
    pixels = SIZES[scene.size]
    if drawing.size != (pixels, pixels):
        drawing = drawing.resize((pixels, pixels), Image.Resampling.LANCZOS)
    slack = (RESOLUTION - pixels) // 2
    dx, dy = (step * (slack - MARGIN) for step in PLACES[scene.place])
    picture = Image.new("RGB", (RESOLUTION, RESOLUTION), BACKGROUNDS[scene.background])
    picture.paste(drawing, (slack + dx, slack + dy), drawing)
    return picture


@dataclass(frozen=True)
class Mix:
    """How often a random scene is a plain one, and how often its caption says the style."""

    centered: float = 0.65
    """Share of scenes at normal size in the center, so that names come first."""
    style_said: float = 0.6
    """Share of captions that say the style."""


def sample_scene(name: str, styles: list[str], rng: random.Random, mix: Mix = Mix()) -> Scene:
    """A random scene of `name`. Never one kept out."""
    while True:
        size, place = "normal", "center"
        if rng.random() > mix.centered:
            size = rng.choice(list(SIZES))
            place = rng.choice(list(PLACES)) if size != "large" else "center"
        scene = Scene(name, rng.choice(styles), rng.choice(list(BACKGROUNDS)), size, place)
        if not scene.kept_out:
            return scene


def with_article(words: str) -> str:
    """ "a teapot", "an octopus"."""
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"


def caption(scene: Scene, rng: random.Random | None = None, mix: Mix = Mix()) -> str:
    """Words for `scene`. Without `rng` all of it is said in one fixed wording; with it, wordings vary, parts drop out.

    A normal size and the center are what a picture has when nothing is said of them, as people speak.
    """
    thing, said = spoken(scene.name), replace(scene)
    chance = rng.random if rng else lambda: 0.0
    size = f"{said.size} " if said.size != "normal" and chance() < 0.9 else ""
    place = said.place != "center" and chance() < 0.9
    style, background = chance() < mix.style_said, chance() < 0.8
    wording = rng.randrange(3) if rng else 0
    if wording == 2 and not (style or background or place):
        words = f"{size}{thing}"
    elif wording == 1 and style:
        words = f"{said.style} {size}{thing}"
    elif style:
        words = f"{with_article(said.style)} drawing of {with_article(size + thing)}"
    else:
        words = with_article(size + thing)
    if place:
        words += f" on the {said.place}" if said.place in ("left", "right") else f" at the {said.place}"
    if background:
        words += (
            f", {said.background} background" if wording == 1 else f" on {with_article(said.background)} background"
        )
    return words


def to_array(pictures: list[Image.Image]) -> np.ndarray:
    """Pictures as uint8 [batch, height, width, 3]."""
    return np.stack([np.asarray(picture.convert("RGB")) for picture in pictures])
