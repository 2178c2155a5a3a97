"""What is left of fidelity and alignment against the number of atoms; and the images themselves."""

from pathlib import Path

import numpy as np

import atomtune
from atomtune.sampling import grid, save_png
from experiments.common import subjects
from experiments.common.cells import read
from experiments.common.figures import BLUE, GREY, ORANGE, plt, save
from experiments.common.report import DOCS
from experiments.common.steering import opened, setup_of
from experiments.prune.run import COUNTS, RANKINGS

HERE = Path(__file__).parent


def plot(out: Path = HERE, docs: Path = DOCS) -> None:
    if not (found := read(out)):
        return
    drawn, axes = plt.subplots(1, 2, figsize=(11, 4))
    styles = {"model": ("-", "o", "over the model"), "layer": (":", "s", "in each layer")}
    for axis, score in zip(axes, ("fidelity", "alignment")):
        for (by, label), colour in zip(RANKINGS.items(), (BLUE, ORANGE)):
            for reading, (line, mark, title) in styles.items():
                kept = [left["kept"] for left in next(iter(found.values()))[f"{reading}-{by}"]]
                values = np.array([[left[score] for left in c[f"{reading}-{by}"]] for c in found.values()])
                axis.plot(kept, values.mean(0), line, marker=mark, color=colour, label=f"{label}, {title}")
                axis.vlines(kept, values.min(0), values.max(0), color=colour, linewidth=2, alpha=0.25)
        for kind, text in {"all": "all atoms", "base": "base"}.items():
            level = np.mean([c[kind][score] for c in found.values()])
            axis.axhline(level, color=GREY, linewidth=0.8)
            spot = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
            axis.annotate(text, (1, level), (4, 0), color=GREY, fontsize=11, va="center", **spot)
        axis.set(xscale="log", xlabel="atoms kept, in all", title=score)
        axis.set_xticks((4, 12, 40, 120, 400, 1000), ["4", "12", "40", "120", "400", "1000"])
        axis.minorticks_off()
    axes[0].legend(fontsize=10, loc="upper left", bbox_to_anchor=(0, 0.87), frameon=True, edgecolor="none")
    save(drawn, docs / "results" / "figures" / "steering-prune.png")


def pictures(docs: Path = DOCS, quick: bool = False) -> None:
    """The first prompt of each subject with all atoms, and with the best over the model."""
    setup, rows = setup_of(quick), []
    for name in setup.names:
        it, prompt = opened(setup, name), subjects.task(name).prompts[0]
        rows.append([])
        for count in (len(it.board), *sorted(COUNTS, reverse=True)):
            it.board.keep(count)
            rows[-1].append(atomtune.generate(it.pipe, prompt)[0].image)
    columns = ("all atoms", *(f"{count} atoms" for count in sorted(COUNTS, reverse=True)))
    strip = grid(rows, [subjects.task(name).prompts[0] for name in setup.names], columns)
    save_png(strip, docs / "how-to" / "prune.png")
