"""The three scores against density, trained with it and turned after training."""

from pathlib import Path

import numpy as np

from experiments.common.figures import BLUE, ORANGE, plt, save
from experiments.common.intervals import interval
from experiments.common.report import DOCS
from experiments.density.run import DENSITIES, SCORES, WAYS, at, curves

HERE = Path(__file__).parent


def plot(out: Path = HERE, docs: Path = DOCS) -> None:
    """Lines: means over the subjects; bands: their 95 % intervals."""
    figure, axes = plt.subplots(1, len(SCORES), figsize=(13, 4.4))
    for axis, score in zip(axes, SCORES):
        for (way, curve), colour, line in zip(curves(out).items(), (BLUE, ORANGE), ("o-", "s--")):
            if curve:
                values = [at(curve, place, score) for place in range(len(DENSITIES))]
                low, high = zip(*map(interval, values))
                axis.plot(DENSITIES, np.mean(values, 1), line, color=colour, label=WAYS[way])
                axis.fill_between(DENSITIES, low, high, color=colour, alpha=0.15, linewidth=0)
        axis.set(xscale="log", title=score)
        axis.set_xticks(DENSITIES, [f"{density:g}" for density in DENSITIES])
        axis.minorticks_off()
    axes[0].legend()
    figure.supxlabel("density ρ: share of a layer's atoms that a token uses")
    save(figure, docs / "results" / "figures" / "density.png")
