"""Fidelity and alignment of every way to train that was tried on all subjects."""

from pathlib import Path
from textwrap import fill

from experiments.common.cells import read
from experiments.common.figures import BLUE, GREEN, GREY, ORANGE, plt, save
from experiments.common.report import DOCS
from experiments.compact.run import RECIPES, keeps, scores

HERE = Path(__file__).parent


def plot(out: Path = HERE, docs: Path = DOCS) -> None:
    if not (found := read(out)):
        return
    things = scores(found, "base", "fidelity").size
    labels = [label for label in RECIPES if scores(found, label, "fidelity").size == things]
    drawn, axes = plt.subplots(1, 2, figsize=(11, 0.55 * len(labels) + 1.2), sharey=True)
    for axis, score in zip(axes, ("fidelity", "alignment")):
        for row, label in enumerate(labels):
            values = scores(found, label, score)
            colour = (
                GREY
                if label == "full"
                else ORANGE
                if label.startswith("lora")
                else GREEN
                if keeps(found, label)
                else BLUE
            )
            axis.barh(row, values.mean(), 0.7, color=colour)
            axis.plot(values, [row] * len(values), "o", color="black", markersize=3)
        axis.axvline(scores(found, "full", score).mean(), color=GREY, linewidth=0.8, linestyle=":")
        axis.set_title(score)
    axes[0].set_yticks(range(len(labels)), [fill(RECIPES[label].title, 50) for label in labels], fontsize=10)
    axes[0].invert_yaxis()
    save(drawn, docs / "results" / "figures" / "steering-compact.png")
