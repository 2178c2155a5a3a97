"""Figure 2, drawn: (a) coefficients only, (b) atoms only, (c) the atoms before and after, by frequency."""

from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from experiments.cells import read
from experiments.figures import BLUE, GREY, RED, plt, save

HERE = Path(__file__).parent
PANELS = (
    ("pretrained", "before"),
    ("coefficients only", "after, coefficients only"),
    ("atoms only", "after, atoms only"),
)


def plot(out: Path = HERE) -> None:
    values = read(out / "results")["dense"]
    figure = plt.figure(figsize=(12, 6))
    top, bottom = figure.subfigures(2, 1)  # pyright: ignore[reportGeneralTypeIssues]
    for letter, axis, part in zip("ab", top.subplots(1, 2, sharey=True), ("coefficients only", "atoms only")):
        example = values[f"example, {part}"]
        axis.plot(example["signal"], color=GREY, linewidth=2.5, alpha=0.5, label="high-frequency signal")
        axis.plot(example["output"], color=RED, linewidth=1.2, label=f"fine-tuned: {part}")
        seen = example["seen"]
        axis.plot(seen, torch.tensor(example["signal"])[seen], "o", color=BLUE, markersize=4, label="seen")
        axis.set(xlabel="time (samples)", title=f"({letter}) {part}: NMSE {fmean(values[part]):.2f}")
        axis.set_ylim(-3, 3.4)
        axis.legend(frameon=False, fontsize=8, ncols=3, loc="upper center")
    axes = bottom.subplots(1, 3, sharey=True)
    picture: Any = None
    peak = max(max(max(row) for row in values[f"spectrum, {part}"]) for part, _ in PANELS)
    for axis, (part, label) in zip(axes, PANELS):
        rows = torch.tensor(values[f"spectrum, {part}"])
        picture = axis.imshow(rows, aspect="auto", cmap="Blues", vmin=0, vmax=0.6 * peak, interpolation="nearest")
        axis.axvline(24.5, color=RED, linewidth=1)
        axis.set(xlabel="frequency (in 1/64; right of the line: high)", title=f"(c) atoms {label}")
    axes[0].set_ylabel("40 largest atoms")
    figure.colorbar(picture, ax=axes, label="amplitude", shrink=0.8)
    save(figure, out / "figure.png")


if __name__ == "__main__":
    plot()
