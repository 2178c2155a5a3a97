"""What an adapter does to everything else: `python -m experiments --only drift`

Six subjects that moji has never seen, with and without `--preserve`, scored on their own prompts (fidelity, alignment)
and on other prompts at the same noise as the base (`metrics.other_prompts`: unrelated things, neighbours of the class,
the class without the token).
"""

from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import atomtune
from atomtune import metrics, sampling
from atomtune.files import atomic_folder
from atomtune.moji.names import SEEN_NAMES, spoken
from experiments.common import subjects
from experiments.common.cells import read, spread
from experiments.common.report import table
from pretraining.drawings import Drawings

HERE = Path(__file__).parent
NUM = 4
METHODS: dict[str, dict[str, Any]] = {"lora": {"method": "lora"}, "atoms": {}}
PRESERVE: dict[str, dict[str, Any]] = {
    "plain": {},
    "rows-1": {"preserve": True, "preserve_rows": 1},
    "rows-2": {"preserve": True, "preserve_rows": 2},
    "rows-5": {"preserve": True, "preserve_rows": 5},
}
SLUGS = {spoken(name): name for name in SEEN_NAMES}


@dataclass(frozen=True)
class Config:
    """One cell: a subject, and the options of `customize` (None: the base alone)."""

    name: str
    options: dict[str, Any] | None = field(default=None)

    @property
    def settings(self) -> dict[str, Any]:
        return {"base": subjects.weights_digest(), "name": self.name, "options": self.options, "num": NUM}


@cache
def base_images(name: str) -> dict[str, list[Image.Image]]:
    """The base's images of every set of other prompts; drawn once for the base's weights as they are."""
    folder = subjects.CACHE / subjects.weights_digest() / "others" / name
    for label, prompts in metrics.other_prompts(name).items():
        if not (folder / label).is_dir():
            drawings = sampling.generate(atomtune.load_base("moji"), prompts, batch_size=10)
            with atomic_folder(folder / label) as temporary:
                sampling.save_images(drawings, temporary)
    return {
        label: [Image.open(file).convert("RGB") for file in sorted((folder / label).glob("*.png"))]
        for label in metrics.other_prompts(name)
    }


def measure(config: Config) -> dict[str, Any]:
    pipe, learnt, judge = atomtune.load_base("moji"), {}, metrics.load_judge()
    if config.options is not None:
        run, numbers = subjects.train(config.name, **config.options)
        atomtune.load_adapter(pipe, run)
        learnt = {"seconds": numbers["seconds"], "parameters": numbers["trainable_parameters"]}
    found: dict[str, Any] = learnt | subjects.score(subjects.draw(pipe, config.name, NUM), config.name)
    shown = subjects.task(config.name).shown.values()
    references = [Drawings().picture(scene) for scene in shown]
    for label, prompts in metrics.other_prompts(config.name).items():
        before = base_images(config.name)[label]
        images = (
            before if config.options is None else [d.image for d in sampling.generate(pipe, prompts, batch_size=10)]
        )
        values = asdict(metrics.drift(before, images, judge.features))
        if label == "class":
            values["pres"] = metrics.preservation(images, references, judge.features)
            values["div"] = metrics.class_diversity(images, judge.features)
        else:
            names = [SLUGS[prompt.split(" on ")[0].split(" ", 1)[1]] for prompt in prompts]
            values["recognised"] = float(np.mean(judge.rank(images, names) == 0))
        found[label] = values
    return found


def grid(quick: bool = False) -> dict[str, Config]:
    """There is no small slice: every cell trains an adapter."""
    if quick:
        return {}
    cells = {f"{name}-base": Config(name) for name in subjects.SUBJECTS}
    for name in subjects.SUBJECTS:
        for method, options in METHODS.items():
            for kind, preserve in PRESERVE.items():
                cells[f"{name}-{method}-{kind}-0"] = Config(name, options | preserve | {"seed": 0})
    return cells


def results(out: Path = HERE) -> str:
    found = read(out)
    rows = []
    for label in dict.fromkeys(name.split("-", 1)[1] for name in found):
        cells = [found[key] for key in found if key.split("-", 1)[1] == label]
        scores = [[cell[score] for cell in cells] for score in ("fidelity", "alignment")]
        scores += [[cell[part]["pixels"] for cell in cells] for part in ("unrelated", "neighbours", "class")]
        scores += [[cell["unrelated"][score] for cell in cells] for score in ("features", "recognised", "unchanged")]
        rows.append([label, str(len(cells)), *(spread(values, 2 if i < 2 else 3) for i, values in enumerate(scores))])
    head = ("trained", "subjects", "fidelity", "alignment", "drift, unrelated", "neighbours", "class")
    return table([*head, "drift of features", "recognised", "unchanged"], rows)
