"""How alike matched atoms are, for each kind of second run."""

from pathlib import Path

import numpy as np

from experiments.common.cells import read
from experiments.common.figures import BLUE, GREY, ORANGE, plt, save
from experiments.common.report import DOCS
from experiments.stability.run import KINDS, MATCHED

HERE = Path(__file__).parent


def plot(out: Path = HERE, docs: Path = DOCS) -> None:
    if not (found := read(out)):
        return
    drawn, axis = plt.subplots(figsize=(6.4, 3.8))
    edges = np.linspace(-0.1, 1, 45)
    for (kind, title), colour in zip(KINDS.items(), (BLUE, ORANGE, GREY)):
        values = np.concatenate([np.concatenate(cell["likeness"][kind]) for cell in found.values()])
        weights = np.full(len(values), 100 / len(values))
        axis.hist(values, list(edges), weights=weights, histtype="step", color=colour, linewidth=1.8, label=title)
    axis.axvline(MATCHED, color=GREY, linewidth=0.8, linestyle=":")
    axis.set_xlabel("likeness of an atom to its partner in the second run")
    axis.set_ylabel("atoms, %")
    axis.set_yscale("log")
    axis.legend(frameon=False)
    save(drawn, docs / "results" / "figures" / "steering-stability.png")
