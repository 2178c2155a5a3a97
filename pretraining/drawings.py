"""The drawings: five emoji sets from the npm registry, rendered once at every size a scene uses.

Run `python -m pretraining.drawings`. The sets come as SVG inside JSON (`npm pack`); their licences are Apache-2.0,
MIT and CC-BY-4.0 (see the model card). A drawing is an RGBA picture; `Drawings` finds them by name, style and size.
"""

import io
import json
import random
import subprocess
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from atomtune.moji.names import HELD_OUT_NAMES, SEEN_NAMES
from atomtune.moji.scenes import SIZES, STYLES, Mix, Scene, caption, compose, sample_scene
from pretraining import CACHE

VERSIONS = {"twemoji": "1.2.5", "noto": "1.2.9", "fluent-emoji-flat": "1.2.6", "emojione": "1.2.3", "noto-v1": "1.2.5"}


def icon_set(icons: str, version: str | None = None) -> dict:
    """The JSON of one icon set, fetched with `npm pack` when it is not in the cache."""
    folder, version = CACHE / "npm", version or VERSIONS[icons]
    archive = folder / f"iconify-json-{icons}-{version}.tgz"
    if not archive.exists():
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(["npm", "pack", "--silent", f"@iconify-json/{icons}@{version}"], cwd=folder, check=True)
    with tarfile.open(archive) as files:
        return json.load(files.extractfile("package/icons.json"))  # pyright: ignore[reportArgumentType]


def svg(icons: dict, name: str) -> str | None:
    """The drawing of `name` as an SVG document, or None when the set has none."""
    alias = icons.get("aliases", {}).get(name, {})
    icon = icons["icons"].get(alias.get("parent", name))
    if icon is None or alias.keys() & {"rotate", "hFlip", "vFlip"}:
        return None
    width, height = (icon.get(side, icons.get(side, 16)) for side in ("width", "height"))
    box = f"{icon.get('left', 0)} {icon.get('top', 0)} {width} {height}"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}" width="{width}" height="{height}">'
    return f"{head}{icon['body']}</svg>"


def render(document: str, pixels: int) -> Image.Image:
    """Rasterize an SVG document to a square RGBA picture."""
    import resvg_py  # not there on a machine that gets the drawings in a bundle

    png = resvg_py.svg_to_bytes(svg_string=document, width=pixels, height=pixels)
    return Image.open(io.BytesIO(bytes(png))).convert("RGBA")


def render_all(path: Path) -> None:
    """Render every name × style × size there is into one archive at `path`."""
    arrays: dict[str, np.ndarray] = {}
    for style, icons_name in STYLES.items():
        icons = icon_set(icons_name)
        for name in [*SEEN_NAMES, *HELD_OUT_NAMES]:
            if document := svg(icons, name):
                for pixels in SIZES.values():
                    arrays[f"{name}|{style}|{pixels}"] = np.asarray(render(document, pixels))
    temporary = path.with_suffix(".tmp.npz")
    np.savez(temporary, allow_pickle=False, **arrays)
    temporary.rename(path)


class Drawings:
    """All drawings, in memory. `names` are those that have at least one style."""

    def __init__(self, path: Path = CACHE / "drawings.npz") -> None:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            render_all(path)
        with np.load(path) as archive:
            self.arrays = {key: archive[key] for key in archive.files}
        self.styles: dict[str, list[str]] = {}
        for key in self.arrays:
            name, style, _ = key.split("|")
            styles = self.styles.setdefault(name, [])
            if style not in styles:
                styles.append(style)

    def picture(self, scene: Scene) -> Image.Image:
        """The composed 64 × 64 RGB picture of `scene`."""
        return compose(self.drawing(scene), scene)

    def drawing(self, scene: Scene) -> Image.Image:
        """The RGBA drawing of `scene`, at its size."""
        return Image.fromarray(self.arrays[f"{scene.name}|{scene.style}|{SIZES[scene.size]}"])

    def sample(self, names: list[str], rng: random.Random, mix: Mix = Mix()) -> tuple[Scene, str]:  # noqa: B008
        """A random scene of one of `names`, with a caption."""
        name = rng.choice(names)
        scene = sample_scene(name, self.styles[name], rng, mix)
        return scene, caption(scene, rng, mix)


if __name__ == "__main__":
    drawings = Drawings()
    print(f"{len(drawings.styles)} names, {sum(map(len, drawings.styles.values()))} drawings")
