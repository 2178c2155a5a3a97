"""The frontier: how like the subject the images are, and how well they follow the prompt, against what else changes."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from experiments.common import subjects
from experiments.common.cells import read
from experiments.common.figures import BLUE, GREEN, GREY, ORANGE, PURPLE, RED, SKY, plt, save
from experiments.common.report import DOCS
from experiments.drift.run import DIALS, KINDS, METHODS, STEPS, kinds

HERE = Path(__file__).parent
COLOURS = dict(zip(METHODS, (ORANGE, BLUE, SKY, RED, PURPLE, GREY)))
LINES = {"plain": ":", "preserve": "--", "floor": "-"}


def plot(out: Path = HERE, docs: Path = DOCS) -> None:
    found = read(out)
    figures = docs / "results" / "figures"
    if any(name.endswith("-curve") for name in found):
        save(
            _frontier(found, _over_steps(found), "after 40, 80, 150, 250, 400 and 600 steps"),
            figures / "drift-steps.png",
        )
    if any("dials" in cell for cell in found.values()):
        save(_frontier(found, _over_dials(found), "as trained, and with a dial turned"), figures / "drift-dials.png")


Curves = dict[tuple[str, str, str], list[list[dict[str, float]]]]
"""(method, kind, dial) → for each point of the curve, the scores of every subject."""


def _over_steps(found: dict[str, Any]) -> Curves:
    curves = {}
    for method in METHODS:
        for kind in kinds(method):
            cells = [found.get(f"{name}-{method}-{kind}-curve") for name in subjects.SUBJECTS]
            if all(cells):
                curves[method, kind, ""] = [[cell["steps"][str(step)] for cell in cells if cell] for step in STEPS]
    return curves


def _over_dials(found: dict[str, Any]) -> Curves:
    curves = {}
    for method in METHODS:
        for kind in kinds(method):
            cells = [found.get(f"{name}-{method}-{kind}-dials") for name in subjects.SUBJECTS]
            for dial, settings in DIALS.items():
                labels = ["trained", *(f"{dial} {value:g}" for value in settings)]
                if all(cell and labels[-1] in cell["dials"] for cell in cells):
                    curves[method, kind, dial] = [[cell["dials"][label] for cell in cells if cell] for label in labels]
    return curves


def _frontier(found: dict[str, Any], curves: Curves, said: str) -> Any:
    figure, axes = plt.subplots(1, 2, figsize=(13, 6.5), sharex=True)
    for axis, score in zip(axes, ("fidelity", "alignment")):
        for (method, kind, _), points in curves.items():
            _curve(axis, points, score, COLOURS[method], LINES[kind], f"{METHODS[method][0]} {KINDS[kind][0]}".strip())
        base = [found[f"{name}-base"][score] for name in subjects.SUBJECTS if f"{name}-base" in found]
        axis.plot(0, np.mean(base), "o", color=GREEN, markersize=8)
        axis.annotate("the base", (0, np.mean(base)), (8, 0), textcoords="offset points", va="center")
        axis.set(xlabel="drift: change of unrelated images (RMS of pixels)", ylabel=score)
    figure.suptitle(said)
    return figure


def _curve(axis: Axes, points: list[list[dict[str, float]]], score: str, colour: str, line: str, label: str) -> None:
    """The mean over subjects, and a band of one standard error of the score."""
    drift = np.array([[cell["pixels"] for cell in point] for point in points])
    values = np.array([[cell[score] for cell in point] for point in points])
    error = values.std(1, ddof=1) / np.sqrt(values.shape[1])
    order = np.argsort(drift.mean(1))
    x, y = drift.mean(1)[order], values.mean(1)[order]
    axis.plot(drift.mean(1), values.mean(1), line, color=colour, marker=".", label=label)
    axis.fill_between(x, y - error[order], y + error[order], color=colour, alpha=0.12, linewidth=0)
