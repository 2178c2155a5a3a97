"""The density of the layers over training, for each σ."""

from pathlib import Path

from experiments.activations.run import BAND, KINDS, NAMES, TARGET, curve
from experiments.common.cells import read
from experiments.common.figures import BLUE, GREEN, GREY, ORANGE, PURPLE, RED, SKY, plt, save
from experiments.common.report import DOCS

HERE = Path(__file__).parent
COLOURS = dict(zip(KINDS, (BLUE, GREEN, PURPLE, ORANGE, RED, SKY, GREY, "#8B4513")))


def plot(out: Path = HERE, docs: Path = DOCS) -> None:
    found, name = read(out), NAMES[0]
    labels = [label for label in COLOURS if f"{name}-{label}" in found]
    drawn, axes = plt.subplots(2, 4, figsize=(13, 5.6), sharex=True, sharey=True)
    for axis, label in zip(axes.flat, labels):
        c = found[f"{name}-{label}"]
        steps, middle = curve(c, "median")
        axis.fill_between(steps, curve(c, "lowest")[1], curve(c, "highest")[1], color=COLOURS[label], alpha=0.25)
        axis.plot(steps, middle, color=COLOURS[label])
        axis.axhspan((1 - BAND) * TARGET, (1 + BAND) * TARGET, color="black", alpha=0.08, linewidth=0)
        axis.set(yscale="log", ylim=(1e-3, 1), title=KINDS[label].title)
        axis.title.set_fontsize(11)
    drawn.supxlabel("training step")
    drawn.supylabel("density: median layer, and range over layers")
    save(drawn, docs / "results" / "figures" / "activations.png")
