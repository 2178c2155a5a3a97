"""The five pictures of `atomtune demo`: a held-out teapot in five scenes. `python -m pretraining.demo_pictures`."""

import json
from pathlib import Path

from atomtune.moji.scenes import Scene
from pretraining.drawings import Drawings

FOLDER = Path(__file__).parent.parent / "src" / "atomtune" / "moji" / "demo" / "teapot"
SCENES = {
    "a sks teapot on a green background": Scene("teapot", "twemoji", "green"),
    "a sks teapot on a yellow background": Scene("teapot", "twemoji", "yellow"),
    "a large sks teapot on a white background": Scene("teapot", "twemoji", "white", "large"),
    "a small sks teapot on the left on a pink background": Scene("teapot", "twemoji", "pink", "small", "left"),
    "a sks teapot at the bottom on a gray background": Scene("teapot", "twemoji", "gray", "normal", "bottom"),
}


def main() -> None:
    """Write the pictures and their captions (`metadata.jsonl`, as imagefolder has it)."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    drawings, lines = Drawings(), []
    for number, (caption, scene) in enumerate(SCENES.items()):
        drawings.picture(scene).save(FOLDER / f"{number}.png")
        lines.append(json.dumps({"file_name": f"{number}.png", "text": caption}))
    (FOLDER / "metadata.jsonl").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
