"""What is learnt and drawn: the 30 things that moji has never seen, or DreamBooth's folders as they are published."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from PIL import Image

from atomtune.errors import UserError
from atomtune.metrics.pixels import clear_backgrounds
from atomtune.moji.names import HELD_OUT_NAMES, spoken
from atomtune.moji.scenes import PLACES, SIZES, Scene, with_article
from atomtune.training.data import image_files, read_image
from pretraining.drawings import Drawings

TOKEN, STYLE = "sks", "twemoji"
PROMPTS = 25
LIVE = ("cat", "dog")  # classes that DreamBooth dresses
SHOWN = [("normal", "center"), ("normal", "center"), ("large", "center"), ("small", "left"), ("normal", "bottom")]
ASKED = [(size, place) for size in SIZES for place in (PLACES if size != "large" else ("center",))]


@dataclass(frozen=True)
class Task:
    """One subject: its images with their captions, and what is drawn to score it."""

    name: str
    class_name: str
    images: list[tuple[str, Image.Image]]
    prompts: list[str]
    scenes: list[Scene] = field(default_factory=list)
    """Of each prompt, on moji: what an image must show."""


@cache
def of_moji(name: str) -> Task:
    """Five images in one style; their five captions, and twenty scenes that no image shows. Backgrounds that share a
    colour with the drawing are left out, because every method confuses those."""
    drawings = Drawings()
    colours = clear_backgrounds([drawings.picture(Scene(name, STYLE, colour)) for colour in ("white", "black")])
    shown = [Scene(name, STYLE, colours[place % len(colours)], *look) for place, look in enumerate(SHOWN)]
    every = [
        Scene(name, STYLE, colours[(first + place) % len(colours)], *look)
        for first in range(len(colours))
        for place, look in enumerate(ASKED)
    ]
    plain = [Scene(name, STYLE, colour) for colour in colours]  # each background once, then sizes and places
    new = [scene for scene in dict.fromkeys([*plain, *every]) if scene not in shown]
    scenes = [*shown, *new[: PROMPTS - len(shown)]]
    images = [(said(scene), drawings.picture(scene)) for scene in shown]
    return Task(name, spoken(name), images, [said(scene) for scene in scenes], scenes)


def said(scene: Scene) -> str:
    """The scene in words, the subject by its token."""
    size = "" if scene.size == "normal" else f"{scene.size} "
    side = scene.place in ("left", "right")
    place = "" if scene.place == "center" else f" {'on' if side else 'at'} the {scene.place}"
    return f"a {size}{TOKEN} {spoken(scene.name)}{place} on {with_article(scene.background)} background"


def of_dreambooth(folder: Path) -> dict[str, Task]:
    """Every subject that has a folder of images, with the class and the 25 prompts of `prompts_and_classes.txt`.

    Raises `UserError` if the file is not there or says nothing.
    """
    file = folder / "prompts_and_classes.txt"
    if not file.is_file():
        raise UserError(f"there is no prompts_and_classes.txt in {folder}: give the folder of DreamBooth's dataset.")
    text = file.read_text(encoding="utf-8")
    classes = dict(re.findall(r"^(\w+),([\w ]+?)\s*$", text, re.MULTILINE))
    classes.pop("subject_name", None)
    objects, _, live = text.partition("Live Subject Prompts")
    lists = {"objects": templates(objects), "live": templates(live)}
    if not classes or not all(lists.values()):
        raise UserError(f"{file} has no classes, or no two lists of prompts: give DreamBooth's own file.")
    tasks = {}
    for name, class_name in classes.items():
        if (folder / name).is_dir():
            prompts = [one.format(TOKEN, class_name) for one in lists["live" if class_name in LIVE else "objects"]]
            images = [(f"a {TOKEN} {class_name}", read_image(image)) for image in image_files(folder / name)]
            tasks[name] = Task(name, class_name, images, prompts)
    return tasks


def templates(text: str) -> Sequence[str]:
    """The prompts of one list, with {0} for the token and {1} for the class."""
    return re.findall(r"'([^'\n]*\{0\}[^'\n]*\{1\}[^'\n]*)'\.format", text)


MOJI = HELD_OUT_NAMES
