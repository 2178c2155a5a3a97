"""How good the base is; and one picture of each prompt by the base and every method."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from atomtune import sampling
from atomtune.moji.pipeline import WEIGHTS_FOLDER
from experiments.common import subjects
from experiments.common.figures import BLUE, GREEN, GREY, ORANGE, plt, save
from experiments.common.report import DOCS
from experiments.moji_first_look.run import METHODS, grid
from pretraining.card import WORDS

HERE = Path(__file__).parent


def plot(out: Path = HERE, docs: Path = DOCS) -> None:
    """How good the base is, against the images that it has seen: from the weights' own evaluation."""
    history = json.loads((WEIGHTS_FOLDER / "evaluation.json").read_text(encoding="utf-8"))["history"]
    figure, axis = plt.subplots(figsize=(6, 3.4))
    images = [point["images_seen"] / 1e6 for point in history]
    keys = ("name_first", "name_in_first_five", "style", "background")
    for key, colour, mark in zip(keys, (BLUE, ORANGE, GREEN, GREY), "osD^"):
        shares = [100 * point[key] for point in history]
        axis.plot(images, shares, color=colour, marker=mark, label=WORDS[key])
    axis.set(xlabel="images seen, millions", ylabel="right, % of 400 prompts", ylim=(0, 103), xlim=(0, None))
    axis.legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncol=2)
    save(figure, docs / "results" / "moji-curve.png")


def pictures(docs: Path = DOCS, quick: bool = False) -> None:
    """Prompts in columns, two things side by side, from the images that measuring left in the cache."""
    cells, rows, labels = grid(), [], []
    titles = {method: title for method, (title, _) in METHODS.items()}
    for pair in zip(subjects.SUBJECTS[::2], subjects.SUBJECTS[1::2]):
        for method, title in {"base": "base", **titles}.items():
            row: list[Image.Image] = []
            for name in pair:
                with Image.open(cells[f"methods-{name}-{method}"].stripe) as stripe:
                    parts = np.split(np.asarray(stripe), len(subjects.task(name).prompts), axis=1)
                row += [Image.fromarray(part) for part in parts]
            rows.append(row)
            labels.append(title.replace("Aσ(XW)", "(mixed last)").replace("σ(AXW)", "(mixed first)"))
    sampling.save_png(sampling.grid(rows, labels), docs / "results" / "moji-first-look.png")
