"""The images that `atomtune examples` lays out: `python -m pretraining.example_images`.

Two subjects and a style that moji has never seen, and one image to edit. Backgrounds that a subject shares a color with
are left out.
"""

import json
from pathlib import Path

from PIL import Image

from atomtune.moji.scenes import Scene, caption
from atomtune.shipped import IMAGES
from experiments.common import subjects
from experiments.common.styles import OPENMOJI
from pretraining.drawings import Drawings

TEAPOT = {
    "a sks teapot on a green background": Scene("teapot", "twemoji", "green"),
    "a sks teapot on a yellow background": Scene("teapot", "twemoji", "yellow"),
    "a large sks teapot on a white background": Scene("teapot", "twemoji", "white", "large"),
    "a small sks teapot on the left on a pink background": Scene("teapot", "twemoji", "pink", "small", "left"),
    "a sks teapot at the bottom on a gray background": Scene("teapot", "twemoji", "gray", "normal", "bottom"),
}


def main() -> None:
    """Write the images and their captions (`metadata.jsonl`, as imagefolder has it)."""
    drawings = Drawings()
    octopus = subjects.task("octopus").shown
    style = {caption(Scene(name, OPENMOJI.word, c)): OPENMOJI.picture(name, c) for name, c in OPENMOJI.learnt.items()}
    _write(IMAGES / "teapot", {text: drawings.picture(scene) for text, scene in TEAPOT.items()})
    _write(IMAGES / "octopus", {text: drawings.picture(scene) for text, scene in octopus.items()})
    _write(IMAGES / "openmoji", style)
    drawings.picture(Scene("teapot", "twemoji", "green")).save(IMAGES / "teapot.png")


def _write(folder: Path, images: dict[str, Image.Image]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number, (text, image) in enumerate(images.items()):
        image.save(folder / f"{number}.png")
        lines.append(json.dumps({"file_name": f"{number}.png", "text": text}) + "\n")
    (folder / "metadata.jsonl").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
