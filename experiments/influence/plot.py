"""Nonlinearity and error of addition by depth; and what the strongest atoms add to an image and take away."""

from pathlib import Path
from statistics import quantiles

import numpy as np
import torch

import atomtune
from atomtune.analysis.importance import importance
from atomtune.analysis.influence import influence_image
from atomtune.sampling import grid, save_png
from atomtune.tracing import trace
from experiments.common import subjects
from experiments.common.cells import read
from experiments.common.figures import BLUE, GREEN, GREY, ORANGE, plt, save
from experiments.common.report import DOCS
from experiments.common.steering import METHODS, opened, setup_of
from experiments.influence.run import STRONGEST

HERE = Path(__file__).parent


def plot(out: Path = HERE, docs: Path = DOCS) -> None:
    if not (found := read(out)):
        return
    drawn, axes = plt.subplots(1, 2, figsize=(10, 4))
    for (method, name), colour, shift in zip(METHODS.items(), (BLUE, ORANGE, GREEN), (-0.12, 0, 0.12)):
        mine = [cell for label, cell in found.items() if label.endswith(f"-{method}")]
        layers = [[value for thing in things for value in thing] for things in zip(*(c["nonlinearity"] for c in mine))]
        places = np.arange(len(layers)) + shift
        quarters = np.array([quantiles(layer, n=4) for layer in layers])
        axes[0].plot(places, quarters[:, 1], color=colour, marker="o", markersize=4, label=name)
        axes[0].vlines(places, quarters[:, 0], quarters[:, 2], color=colour, linewidth=2, alpha=0.5)
        added = np.array([cell["additivity"] for cell in mine])
        axes[1].plot(places, added.mean(0), color=colour, marker="o", markersize=4, label=name)
        axes[1].vlines(places, added.min(0), added.max(0), color=colour, linewidth=2, alpha=0.5)
    axes[0].set_ylabel("nonlinearity ‖I − J‖ / ‖I‖")
    axes[0].set_title("median and quartiles over units and things", fontsize=10)
    axes[1].set_ylabel("error of addition ‖ΣI − I‖ / ‖I‖")
    axes[1].set_title("mean and range over things", fontsize=10)
    for axis in axes:
        axis.set_xlabel("block (0: the shallowest)")
        axis.set_ylim(bottom=0)
        axis.axhline(1, color=GREY, linewidth=0.8, linestyle=":")
    axes[1].legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    save(drawn, docs / "results" / "figures" / "steering-nonlinearity.png")


def pictures(docs: Path = DOCS, quick: bool = False) -> None:
    """The image of each subject, and what its strongest atoms by energy add (red) and take away (blue)."""
    setup = setup_of(quick)
    rows, labels = [], []
    for name in setup.names:
        it = opened(setup, name)
        prompt = subjects.task(name).prompts[0]
        with trace(it.board.model) as seen:
            atomtune.generate(it.pipe, prompt, steps=setup.steps)
        scores = torch.cat(importance(it.board, traced=seen))
        atoms = list(it.board)
        strongest = [atoms[index].address for index in scores.topk(STRONGEST).indices.tolist()]
        drawn = [influence_image(it.pipe, address, prompt, steps=setup.steps) for address in strongest]
        rows.append([drawn[0][0], *(difference for _, _, difference in drawn)])
        labels.append(f"{name}: {', '.join(strongest)}")
    columns = ("all on", *(f"atom {n + 1} by energy" for n in range(STRONGEST)))
    save_png(grid(rows, labels, columns), docs / "results" / "figures" / "steering-influence.png")
