"""Ranks by the cheap measures against ranks by ablation."""

from pathlib import Path
from statistics import fmean

import torch

from experiments.common.cells import read
from experiments.common.figures import BLUE, GREY, ORANGE, plt, save
from experiments.common.report import DOCS
from experiments.importance.run import CHEAP, agreement, together

HERE = Path(__file__).parent


def plot(out: Path = HERE, docs: Path = DOCS) -> None:
    if not (found := read(out)):
        return
    drawn, axes = plt.subplots(1, 2, figsize=(9, 4), sharey=True)
    for axis, by, colour in zip(axes, CHEAP, (BLUE, ORANGE)):
        for cell in found.values():
            ranks = [torch.tensor(together(cell, kind)).argsort().argsort().float() for kind in (by, "ablation")]
            axis.scatter(*(rank / max(1, len(rank) - 1) for rank in ranks), s=7, color=colour, alpha=0.5, linewidths=0)
        axis.plot([0, 1], [0, 1], color=GREY, linewidth=1)
        mean = fmean(agreement(cell, by) for cell in found.values())
        axis.set_title(f"{by}: Spearman {mean:.2f}, mean over {len(found)} things", fontsize=10)
        axis.set_xlabel(f"rank by {by} (1: the most important)")
    axes[0].set_ylabel("rank by ablation")
    save(drawn, docs / "results" / "figures" / "steering-importance.png")
