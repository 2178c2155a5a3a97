"""How good moji is: `python -m pretraining.evaluate --json FILE`.

Draws prompts of seen names with fixed seeds and lets the judge name them (its score on the real drawings of the same
scenes stands beside every number), reads background, size and place off the pixels, rebuilds held-out drawings with
the autoencoder, and compares scenes that pretraining kept out (name × style × background × place), and small things
off the center, with the others. Also writes 64 samples in a fixed order, never chosen, and half of them over the
nearest pictures of pretraining. What earlier weights scored stays in the file, as `history`; the weights that
pretraining keeps every half million images are scored there too.
"""

import argparse
import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from atomtune.files import atomic_file
from atomtune.metrics import background_colour, load_judge, place_and_size
from atomtune.moji import load
from atomtune.moji.names import SEEN_NAMES
from atomtune.moji.pipeline import WEIGHTS_FOLDER
from atomtune.moji.scenes import BACKGROUNDS, PLACES, Scene, caption
from atomtune.sampling import grid, save_png
from pretraining import CACHE
from pretraining.autoencoder import held_out_pictures, psnr
from pretraining.drawings import Drawings
from pretraining.transformer import KEPT

BATCH, CARD_BATCH = 20, 200


def scenes(drawings: Drawings, count: int, kept_out: bool = False, small: bool = False) -> list[Scene]:
    """`count` random scenes that pretraining kept out, or did not; half of them off-center, so that places count.
    With `small`, small things, all of them off-center."""
    rng, off_center = random.Random(int(kept_out)), [place for place in PLACES if place != "center"]
    found: list[Scene] = []
    while len(found) < count:
        name = rng.choice(SEEN_NAMES)
        place = rng.choice(off_center) if small else rng.choice(list(PLACES)) if len(found) % 2 else "center"
        size = "small" if small else "normal"
        scene = Scene(name, rng.choice(drawings.styles[name]), rng.choice(list(BACKGROUNDS)), size, place)
        if scene.kept_out == kept_out:
            found.append(scene)
    return found


def draw(pipe: Any, wanted: list[Scene]) -> list[Image.Image]:
    """A picture of each scene's full caption; picture i has seed i."""
    pictures, size = [], BATCH if pipe.device.type == "cpu" else CARD_BATCH
    for start in range(0, len(wanted), size):
        part = wanted[start : start + size]
        noise = [torch.Generator().manual_seed(start + i) for i in range(len(part))]
        pictures += pipe([caption(scene) for scene in part], generator=noise).images
    return pictures


def score(pictures: list[Image.Image], wanted: list[Scene]) -> dict[str, float]:
    """Shares of pictures that show what was asked for."""
    judge = load_judge()
    ranks = judge.rank(pictures, [scene.name for scene in wanted])
    places = [place_and_size(picture) for picture in pictures]
    return {
        "name_first": float((ranks == 0).mean()),
        "name_in_first_five": float((ranks < 5).mean()),
        "style": float(np.mean([a == s.style for a, s in zip(judge.style(pictures), wanted, strict=True)])),
        "background": float(
            np.mean([background_colour(p) == s.background for p, s in zip(pictures, wanted, strict=True)])
        ),
        "place": float(np.mean([a is not None and a[0] == s.place for a, s in zip(places, wanted, strict=True)])),
    }


@dataclass
class Nearest:
    """The picture seen in pretraining that is nearest to a sample."""

    scene: Scene
    rms: float
    """Root of the mean squared difference of the pixels, 0 to 1."""


def nearest(pictures: list[Image.Image], wanted: list[Scene], drawings: Drawings) -> list[Nearest]:
    """For each picture, the nearest drawing of any name and style on the background and at the place asked for."""
    found: dict[int, Nearest] = {}
    stages = [(scene.background, scene.size, scene.place) for scene in wanted]
    for stage in set(stages):
        shown = [Scene(name, style, *stage) for name in SEEN_NAMES for style in drawings.styles[name]]
        shown = [scene for scene in shown if not scene.kept_out]
        real = np.stack([np.asarray(drawings.picture(scene), np.float32) for scene in shown]) / 255
        for i, picture in enumerate(pictures):
            if stages[i] == stage:
                distances = np.sqrt(((real - np.asarray(picture, np.float32) / 255) ** 2).mean((1, 2, 3)))
                found[i] = Nearest(shown[distances.argmin()], float(distances.min()))
    return [found[i] for i in range(len(pictures))]


def beside(pictures: list[Image.Image], found: list[Nearest], drawings: Drawings) -> Image.Image:
    """The first 32 samples, each over what is nearest to it."""
    real = [drawings.picture(one.scene) for one in found]
    rows = [row[start : start + 8] for start in range(0, 32, 8) for row in (pictures, real)]
    return grid(rows, ["sample", "nearest"] * (len(rows) // 2))


def point(images: int, base: dict[str, float], small: dict[str, float]) -> dict[str, float]:
    """What is kept of an evaluation when the weights have gone on."""
    return {"images_seen": images, **base, "small_place": small["place"], "small_name_first": small["name_first"]}


def of_kept(folder: Path, images: int, seen: list[Scene], small: list[Scene], device: str = "cpu") -> dict[str, float]:
    """The point of the weights in a folder that pretraining kept."""
    pipe = load(folder).to(device)
    pipe.set_progress_bar_config(disable=True)
    return point(images, score(draw(pipe, seen), seen), score(draw(pipe, small), small))


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, default=WEIGHTS_FOLDER / "evaluation.json")
    parser.add_argument("--samples", type=Path, default=Path("docs/results/moji-samples.png"))
    parser.add_argument("--nearest", type=Path, default=Path("docs/results/moji-nearest.png"))
    parser.add_argument("--prompts", type=int, default=400)
    parser.add_argument("--kept", type=Path, default=CACHE / KEPT, help="folder of the weights that pretraining kept")
    parser.add_argument("--only-kept", action="store_true", help="score these alone, and add them to the history")
    parser.add_argument("--device", default="cpu", help="where those are drawn with")
    options = parser.parse_args()
    drawings = Drawings()
    before = json.loads(options.json.read_text()) if options.json.exists() else {}
    history = {past["images_seen"]: past for past in before.get("history", [])}
    seen, small = scenes(drawings, options.prompts), scenes(drawings, options.prompts // 4, small=True)
    for folder in sorted(options.kept.glob("*")):
        if (images := int(folder.name)) not in history:
            history[images] = of_kept(folder, images, seen, small, options.device)
    if options.only_kept:
        result = before
    else:
        result = measured(drawings, seen, small, options)
        history[result["images_seen"]] = point(result["images_seen"], result["base"], result["small"])
    result["history"] = [history[images] for images in sorted(history)]
    with atomic_file(options.json) as file:
        Path(file).write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


def measured(drawings: Drawings, seen: list[Scene], small: list[Scene], options: argparse.Namespace) -> dict[str, Any]:
    """All numbers of the weights in the package; its samples are written."""
    pipe, kept = load(), scenes(drawings, options.prompts // 4, kept_out=True)
    pipe.set_progress_bar_config(disable=True)
    drawn_seen, drawn_kept = draw(pipe, seen), draw(pipe, kept)
    near = nearest(drawn_seen, seen, drawings)
    result = {
        "images_seen": json.loads((WEIGHTS_FOLDER / "training.json").read_text())["images"],
        "prompts": len(seen),
        "base": score(drawn_seen, seen),
        "real_drawings": score([drawings.picture(scene) for scene in seen], seen),
        "kept_out_compositions": score(drawn_kept, kept),
        "small": score(draw(pipe, small), small),
        "small_real_drawings": score([drawings.picture(scene) for scene in small], small),
        "autoencoder_psnr_held_out_db": psnr(pipe.vae, held_out_pictures(drawings)),  # pyright: ignore[reportArgumentType]
        "rms_to_nearest_training_drawing": {
            f"p{share}": float(np.percentile([one.rms for one in near], share)) for share in (5, 50, 95)
        },
        "nearest_has_the_name": float(np.mean([one.scene.name == s.name for one, s in zip(near, seen, strict=True)])),
    }
    rows = [drawn_seen[start : start + 8] for start in range(0, 64, 8)]
    save_png(grid(rows, [""] * len(rows)), options.samples)
    save_png(beside(drawn_seen, near, drawings), options.nearest)
    return result


if __name__ == "__main__":
    main()
