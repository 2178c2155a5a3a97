"""Figure 2, drawn: (a) coefficients only, (b) atoms only, (c) atoms before and after, over time and by frequency."""

from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from experiments.common.cells import read
from experiments.common.figures import BLUE, GREY, RED, SMALL, plt, save
from experiments.common.report import DOCS

HERE = Path(__file__).parent
PANELS = (
    ("pretrained", "before"),
    ("coefficients only", "after coefficients only"),
    ("atoms only", "after atoms only"),
)


def plot(out: Path = HERE, docs: Path = DOCS) -> None:
    values = read(out)["dense"]
    figure = plt.figure(figsize=(11, 10))
    top, middle, bottom = figure.subfigures(3, 1, height_ratios=(1, 1, 0.9))  # pyright: ignore[reportGeneralTypeIssues]
    axes = top.subplots(1, 2, sharey=True)
    for letter, axis, part in zip("ab", axes, ("coefficients only", "atoms only")):
        example = values[f"example, {part}"]
        axis.plot(example["signal"], color=GREY, linewidth=3, alpha=0.5, label="signal")
        axis.plot(example["output"], color=RED, linewidth=1.2, label="output")
        seen = example["seen"]
        axis.plot(seen, torch.tensor(example["signal"])[seen], "o", color=BLUE, markersize=5, label="seen")
        axis.set(xlabel="time (samples)", title=f"({letter}) {part} fine-tuned: NMSE {fmean(values[part]):.2f}")
        axis.set_ylim(-3, 3.6)
        axis.legend(ncols=3, loc="upper center")
    axes[0].set_ylabel("high-frequency signal")

    panels = middle.subplots(3, len(PANELS), sharex=True, sharey=True)
    for column, (part, label) in zip(panels.T, PANELS):
        for axis, atom in zip(column, values[f"atoms, {part}"]):
            axis.plot(atom, color=BLUE, linewidth=1)
            axis.set_yticks([])
            axis.tick_params(labelsize=SMALL)
        column[0].set_title(f"(c) atoms {label}")
        column[-1].set_xlabel("time (samples)", fontsize=SMALL)
    for row, axis in enumerate(panels[:, 0]):
        axis.set_ylabel(f"atom {row + 1}", fontsize=SMALL)

    panels = bottom.subplots(1, len(PANELS), sharey=True)
    picture: Any = None
    peak = max(max(max(row) for row in values[f"spectrum, {part}"]) for part, _ in PANELS)
    for axis, (part, _) in zip(panels, PANELS):
        rows = torch.tensor(values[f"spectrum, {part}"])
        picture = axis.imshow(rows, aspect="auto", cmap="Blues", vmin=0, vmax=0.6 * peak, interpolation="nearest")
        axis.axvline(24.5, color=RED, linewidth=1.5)
        axis.set_xticks([0, 12, 24, 32], labels=["0", "12", "24", "32"])
        axis.set_xlabel("low | high frequency (1/64)")
    panels[0].set_ylabel("40 largest atoms")
    bottom.colorbar(picture, ax=panels, label="amplitude", shrink=0.9)
    save(figure, docs / "results" / "figures" / "fig2.png")
