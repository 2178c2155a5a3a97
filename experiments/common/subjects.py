"""Six things moji has never seen, what is learnt of them, and how pictures of them are scored.

Three animals and three objects, as Twemoji draws them. Five pictures teach one, on five backgrounds with the sizes and
places of the demo; two of their captions and three contexts that no picture shows are drawn to score it. Backgrounds
that share a colour with the drawing are left out, because every method confuses those.

Adapters are trained by `atomtune.customize` with the recipe moji-paper and kept in the cache folder, by the base's
weights and their options, so that experiments share them.
"""

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import atomtune
from atomtune import metrics
from atomtune.moji.scenes import BACKGROUNDS, Scene
from atomtune.prompts import without_tokens
from experiments.common.cells import weights_digest
from pretraining.drawings import Drawings

CACHE = Path(os.environ.get("ATOMTUNE_CACHE", Path.home() / ".cache" / "atomtune")) / "subjects"
SHARED_COLOURS = {  # backgrounds too close to the drawing
    "octopus": ("purple", "blue"),
    "turtle": ("green",),
    "flamingo": ("pink", "red", "black"),
    "teapot": ("blue",),
    "helicopter": ("yellow", "orange"),
    "guitar": ("red", "white", "black"),
    "crown": ("orange", "yellow"),
    "mushroom": ("red", "purple", "pink", "gray"),
    "tractor": ("green", "gray", "black"),
}
SUBJECTS = tuple(SHARED_COLOURS)[:6]  # the last three are for the experiment on merging
STYLE, TOKEN = "twemoji", "sks"
ORDER = ("green", "yellow", "white", "pink", "gray", "red", "blue", "orange", "purple", "black")


@dataclass(frozen=True)
class Task:
    """One thing to learn: what it is called and the scenes that are shown and drawn."""

    name: str
    shown: dict[str, Scene]
    """Caption → scene, of the five pictures."""
    unseen: dict[str, Scene]

    @property
    def prompts(self) -> list[str]:
        """Two captions of pictures and three contexts that no picture shows."""
        return [*list(self.shown)[:2], *self.unseen]


def task(name: str) -> Task:
    """The pictures and prompts of a name of `SHARED_COLOURS`."""
    colours = [colour for colour in ORDER if colour not in SHARED_COLOURS[name]]
    looks = [("normal", "center"), ("normal", "center"), ("large", "center"), ("small", "left"), ("normal", "bottom")]
    new = [("normal", "center"), ("small", "top"), ("normal", "right")]
    shown, unseen = (
        [Scene(name, STYLE, colour, *look) for colour, look in zip(part, kinds)]
        for part, kinds in ((colours[:5], looks), ([*colours[5:], *colours[:5]][:3], new))
    )
    return Task(name, {_words(s): s for s in shown}, {_words(s): s for s in unseen})


def _words(scene: Scene) -> str:
    size = "" if scene.size == "normal" else f"{scene.size} "
    place = {"center": "", "left": " on the left", "right": " on the right"}.get(scene.place, f" at the {scene.place}")
    article = "an" if scene.background[0] in "aeiou" else "a"
    return f"a {size}{TOKEN} {scene.name}{place} on {article} {scene.background} background"


def pictures(name: str, folder: Path) -> dict[str, Image.Image]:
    """Write the five pictures and their captions into `folder`; return them by caption."""
    folder.mkdir(parents=True, exist_ok=True)
    drawings, shown = Drawings(), task(name).shown
    made = {words: drawings.picture(scene) for words, scene in shown.items()}
    for number, picture in enumerate(made.values()):
        picture.save(folder / f"{number}.png")
    lines = [json.dumps({"file_name": f"{number}.png", "text": words}) for number, words in enumerate(made)]
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return made


PLAIN = {"mixed_precision": "no", "report_to": "none"}
"""Options of `customize` in every experiment: float32, also on an accelerator."""


def moji() -> Any:
    """The base, in float32, on the accelerator if there is one."""
    return atomtune.load_base("moji", "float32", "auto")


def train(name: str, **options: Any) -> tuple[Path, dict[str, Any]]:
    """Learn a subject with the recipe moji-paper and these options of `customize`; returns the run's folder and
    numbers. Kept, never repeated."""
    label = hashlib.sha256(json.dumps(options, sort_keys=True, default=str).encode()).hexdigest()[:8]
    folder = CACHE / weights_digest() / f"{name}-{options.get('method', 'atoms')}-{label}"
    pictures(name, folder / "pictures")
    options = {"class_name": name, "token": TOKEN, "sample_every": 0, "checkpoint_every": 1_000_000} | options
    options = PLAIN | {"config": "moji-paper"} | options
    return folder / "run", atomtune.customize(folder / "pictures", out=folder / "run", **options)


@dataclass
class Score:
    """Means over the drawn pictures."""

    fidelity: float
    """Cosine to the subject in the five pictures: near 1 the same drawing, near 0 another thing."""
    alignment: float
    """Cosine to the prompt without its token."""
    background: float
    """Share with the background that was asked for."""
    diversity: float
    """Vendi score of the pictures of one prompt, from 1 to their number."""


def draw(pipe: Any, name: str, num: int = 4, seed: int = 0, steps: int | None = None) -> list[Image.Image]:
    """`num` pictures of each prompt of a subject, prompt by prompt."""
    return [d.image for d in atomtune.generate(pipe, task(name).prompts, num, seed, steps, batch_size=10)]


def score(images: list[Image.Image], name: str) -> dict[str, float]:
    """Judge what `draw` drew."""
    judge, wanted = metrics.load_judge(), task(name)
    drawings = Drawings()
    references = [drawings.picture(scene) for scene in wanted.shown.values()]
    num = len(images) // len(wanted.prompts)
    prompts = [without_tokens(prompt, [TOKEN]) for prompt in wanted.prompts for _ in range(num)]
    colours = [next(word for word in prompt.split() if word in BACKGROUNDS) for prompt in prompts]
    groups = [metrics.vendi(judge.features(images[i : i + num])) for i in range(0, len(images), num)]
    return asdict(
        Score(
            fidelity=float(judge.fidelity(images, references).mean()),
            alignment=float(judge.alignment(images, prompts).mean()),
            background=float(np.mean([metrics.background_colour(i) == c for i, c in zip(images, colours)])),
            diversity=float(np.mean(groups)),
        )
    )
