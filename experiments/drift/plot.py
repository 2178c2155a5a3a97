"""What is gained and at which price, over training steps and over the dials of sampling: fidelity and alignment against
drift; and the frontier, alignment and diversity against fidelity."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from experiments.common import subjects
from experiments.common.cells import read
from experiments.common.figures import BLUE, GREEN, GREY, ORANGE, PURPLE, RED, SKY, plt, save
from experiments.common.intervals import interval
from experiments.common.report import DOCS
from experiments.drift.run import DIALS, KINDS, METHODS, STEPS, kinds

HERE = Path(__file__).parent
COLOURS = dict(zip(METHODS, (ORANGE, BLUE, SKY, RED, PURPLE, GREY)))
LINES = {"plain": ":", "preserve": "--", "floor": "-"}
MARKS = {"": ".", "scale": "o", "density": "s", "floor": "^"}
FRONTIER = (("lora", "plain"), ("lora", "preserve"), ("dora", "preserve"), ("oft", "preserve"), ("values", "floor"))
"""The ways to train of which the frontier is drawn, so that one can be told from another."""


def plot(out: Path = HERE, docs: Path = DOCS) -> None:
    found = read(out)
    figures = docs / "results" / "figures"
    steps, dials = over_steps(found), over_dials(found)
    if steps:
        after = f"after {', '.join(map(str, STEPS[:-1]))} and {STEPS[-1]} steps"
        save(_against_drift(found, steps, after), figures / "drift-steps.png")
    if dials:
        save(_against_drift(found, dials, "as trained, and with a dial turned"), figures / "drift-dials.png")
    if any(way[:2] in FRONTIER for way in steps):
        save(_frontier(found, steps, dials), figures / "drift-frontier.png")


Curves = dict[tuple[str, str, str], list[list[dict[str, float]]]]
"""(method, kind, dial) → for each point of the curve, the scores of every subject."""


def over_steps(found: dict[str, Any]) -> Curves:
    """Of the ways to train whose cells are there for every subject."""
    curves = {}
    for method in METHODS:
        for kind in kinds(method):
            cells = [found.get(f"{name}-{method}-{kind}-curve") for name in subjects.SUBJECTS]
            if all(cells):
                curves[method, kind, ""] = [[cell["steps"][str(step)] for cell in cells if cell] for step in STEPS]
    return curves


def over_dials(found: dict[str, Any]) -> Curves:
    """The same, for each dial that a way has; the first point is the adapter as it was trained."""
    curves = {}
    for method in METHODS:
        for kind in kinds(method):
            cells = [found.get(f"{name}-{method}-{kind}-dials") for name in subjects.SUBJECTS]
            for dial, settings in DIALS.items():
                labels = ["trained", *(f"{dial} {value:g}" for value in settings)]
                if all(cell and labels[-1] in cell["dials"] for cell in cells):
                    curves[method, kind, dial] = [[cell["dials"][label] for cell in cells if cell] for label in labels]
    return curves


def _against_drift(found: dict[str, Any], curves: Curves, said: str) -> Any:
    figure, axes = plt.subplots(1, 2, figsize=(13, 6.5), sharex=True)
    for axis, score in zip(axes, ("fidelity", "alignment")):
        for (method, kind, _), points in curves.items():
            _curve(axis, points, score, COLOURS[method], LINES[kind], f"{METHODS[method][0]} {KINDS[kind][0]}".strip())
        base = [found[f"{name}-base"][score] for name in subjects.SUBJECTS if f"{name}-base" in found]
        axis.plot(0, np.mean(base), "o", color=GREEN, markersize=8)
        axis.annotate("the base", (0, np.mean(base)), (8, 0), textcoords="offset points", va="center")
        axis.set(xlabel="drift: change of unrelated images (RMS of pixels)", ylabel=score)
    figure.suptitle(said)
    _legend(figure)
    return figure


def _frontier(found: dict[str, Any], steps: Curves, dials: Curves) -> Any:
    """A row over training steps, a row over dials; without what was not run."""
    rows = [(steps, "40 to 600 training steps"), (dials, "dials of sampling")]
    rows = [(curves, said) for curves, said in rows if any(way[:2] in FRONTIER for way in curves)]
    figure, grid = plt.subplots(len(rows), 2, figsize=(13, 5.5 * len(rows)), sharex="row", squeeze=False)
    for axes, (curves, said) in zip(grid, rows):
        for axis, score in zip(axes, ("alignment", "diversity")):
            trade_off(axis, curves, score)
            axis.set_title(said)
    _legend(figure)
    return figure


def _legend(figure: Any) -> None:
    """One for all panels, below them."""
    handles = {label: handle for axis in figure.axes for handle, label in zip(*axis.get_legend_handles_labels())}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=2)


def trade_off(axis: Axes, curves: Curves, score: str) -> None:
    """A score against fidelity: means over subjects, and a band that is the score's 95 % interval over them."""
    for (method, kind, dial), points in curves.items():
        if (method, kind) not in FRONTIER:
            continue
        x = [np.mean([cell["fidelity"] for cell in point]) for point in points]
        values = [[cell[score] for cell in point] for point in points]
        low, high = zip(*map(interval, values))
        label = f"{METHODS[method][0]} {KINDS[kind][0]}".strip() + (f", {dial} turned" if dial else "")
        colour, order = COLOURS[method], np.argsort(x)
        axis.plot(x, np.mean(values, 1), LINES[kind], color=colour, marker=MARKS[dial], label=label)
        across, low, high = (np.array(numbers)[order] for numbers in (x, low, high))
        axis.fill_between(across, low, high, color=colour, alpha=0.12, linewidth=0)
    axis.set(xlabel="fidelity to the five images", ylabel=score)


def _curve(axis: Axes, points: list[list[dict[str, float]]], score: str, colour: str, line: str, label: str) -> None:
    """The mean over subjects, and a band of one standard error of the score."""
    drift = np.array([[cell["pixels"] for cell in point] for point in points])
    values = np.array([[cell[score] for cell in point] for point in points])
    error = values.std(1, ddof=1) / np.sqrt(values.shape[1])
    order = np.argsort(drift.mean(1))
    x, y = drift.mean(1)[order], values.mean(1)[order]
    axis.plot(drift.mean(1), values.mean(1), line, color=colour, marker=".", label=label)
    axis.fill_between(x, y - error[order], y + error[order], color=colour, alpha=0.12, linewidth=0)
