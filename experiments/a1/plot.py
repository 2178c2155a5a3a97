"""Appendix A.1, drawn: nonlinearity of an atom's effect against the depth of its layer."""

from pathlib import Path
from statistics import fmean

from experiments.a1.run import DEPTHS, by_layer
from experiments.common.cells import read
from experiments.common.figures import BLUE, GREEN, ORANGE, plt, save
from experiments.common.report import DOCS

HERE = Path(__file__).parent


def plot(out: Path = HERE, docs: Path = DOCS) -> None:
    cells = read(out)
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.6), sharex=True, sharey=True)
    for axis, what, title in zip(
        axes, ("atom", "layer"), ("one atom (mean of the 6 largest)", "all atoms of the layer")
    ):
        for layers, colour, mark in zip(DEPTHS, (BLUE, ORANGE, GREEN), "osD"):
            if found := by_layer(cells, layers, what):
                places = [layer / (len(found) - 1) for layer in range(len(found))]
                axis.plot(places, [fmean(each) for each in found], color=colour, marker=mark, label=f"{layers} layers")
                axis.vlines(places, [min(each) for each in found], [max(each) for each in found], color=colour)
        axis.set_title(title)
        axis.set_xlabel("place of the layer (0: first, 1: last)")
        axis.set_ylim(bottom=0)
    axes[0].set_ylabel("‖full − first-order‖ / ‖full‖")
    axes[0].legend(title="decoder of")
    save(figure, docs / "results" / "figures" / "a1.png")
