"""48 real drawings to judge: noto's (Apache-2.0) in the first row of drawings.png, fluent's (MIT) in the second."""

from pathlib import Path

from PIL import Image

from atomtune.moji.scenes import BACKGROUNDS, Scene, compose

NAMES = """
cat frog elephant sunflower cherries hamburger pizza carrot bicycle airplane house ladder guitar teapot penguin
snail key umbrella rainbow trumpet robot t-shirt camera mushroom
""".split()
STYLES: list[str] = ["noto", "fluent"]
SIDE = 44


def drawing(name: str, style: str) -> Image.Image:
    """The RGBA drawing of `name` in `style`, 44 × 44."""
    sheet = Image.open(Path(__file__).parent / "drawings.png")
    left, top = NAMES.index(name) * SIDE, STYLES.index(style) * SIDE  # pyright: ignore[reportArgumentType]
    return sheet.crop((left, top, left + SIDE, top + SIDE))


def picture(scene: Scene) -> Image.Image:
    return compose(drawing(scene.name, scene.style), scene)


def every_scene() -> list[Scene]:
    """Each drawing once, the backgrounds in turn."""
    pairs = [(name, style) for style in STYLES for name in NAMES]
    return [Scene(name, style, list(BACKGROUNDS)[i % len(BACKGROUNDS)]) for i, (name, style) in enumerate(pairs)]
