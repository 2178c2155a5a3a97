"""Figures 11 to 16: subjects, prompts and seeds, a row for each method; and the front page's figure."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import SubFigure
from PIL import Image

from atomtune.sampling import read_image, read_settings
from experiments.common.cells import read
from experiments.common.figures import plt, save
from experiments.common.report import DOCS
from experiments.customization.run import GRID, HERE, METHODS, SHEETS, SHOWN, STRIPS
from experiments.drift.plot import FRONTIER, over_steps, trade_off

TITLES = {"base": "the base"} | {method: METHODS[method][0] for method in GRID if method in METHODS}


def plot(out: Path = HERE, docs: Path = DOCS, strips: Path = STRIPS) -> None:
    """Of the subjects whose images with every method are there; the front page's figure when the frontier is too."""
    there = [name for name in SHOWN if all((strips / f"{name}-{method}.png").is_file() for method in GRID)]
    each = len(SHOWN) // len(SHEETS)
    for number, file in enumerate(SHEETS):
        if names := [name for name in SHOWN[number * each :][:each] if name in there]:
            rows = (len(names) + 1) // 2
            figure = plt.figure(figsize=(11, 5.4 * rows))
            parts: Any = figure.subfigures(rows, 2)
            for part, name in zip(np.ravel(parts), names):
                _block(part, name, strips)
            save(figure, docs / "results" / "figures" / file)
    curves = over_steps(read(out.parent / "drift"))
    if there and {*FRONTIER} <= {way[:2] for way in curves}:
        figure = plt.figure(figsize=(16, 6.4))
        halves: Any = figure.subfigures(1, 2, width_ratios=(1.35, 1))
        left, right = halves
        axes = left.subplots(1, 2)
        for axis, score in zip(axes, ("alignment", "diversity")):
            trade_off(axis, curves, score)
        axes[0].legend(loc="lower left")
        left.suptitle("over 40 to 600 training steps, six subjects")
        _block(right, there[0], strips)
        save(figure, docs / "front.png")


def _block(figure: SubFigure, name: str, strips: Path) -> None:
    """One subject: an image that was learnt, and beside it a row of images for each method."""
    prompts = read_settings(strips / f"{name}-{GRID[0]}.png")["prompts"]
    axes = figure.subplots(len(GRID), 1 + len(prompts), width_ratios=(1.05, *[1] * len(prompts)))
    for row, method in zip(axes, GRID):
        strip = read_image(strips / f"{name}-{method}.png")
        for place, axis in enumerate(row):
            axis.set_axis_off()
            if place:
                axis.imshow(_image(strip, place))
        row[1].annotate(TITLES[method], (-0.1, 0.5), xycoords="axes fraction", ha="right", va="center", fontsize=10)
    learnt = figure.add_axes((0.06, 0.84, 0.12, 0.12))
    learnt.imshow(_image(strip, 0))
    learnt.set_title("learnt from", fontsize=8.5, pad=2)
    learnt.set_axis_off()
    for axis, prompt in zip(axes[0][1:], prompts):
        axis.set_title(_wrapped(prompt), fontsize=8.5)


def _image(strip: Image.Image, place: int) -> Image.Image:
    side = strip.height
    return strip.crop((place * side, 0, (place + 1) * side, side))


def _wrapped(prompt: str, width: int = 14) -> str:
    lines = [""]
    for word in prompt.split():
        longer = f"{lines[-1]} {word}".strip()
        lines = [*lines[:-1], longer] if len(longer) <= width else [*lines, word]
    return "\n".join(lines)
