"""Figure 1, drawn: (a) latents that decode to 3, (b) 8s that turn into 3s, (c) what each of 12 atoms does to one."""

from pathlib import Path
from statistics import fmean

import torch

from experiments.cells import read
from experiments.fig1.run import scores
from experiments.figures import BLUE, GREY, ORANGE, RED, SKY, plt, save

HERE = Path(__file__).parent
BARS = (
    ("before", "k2", "before", GREY),
    ("all atoms", "k2", "all", SKY),
    ("best 12", "k2", "best 12", BLUE),
    ("random 12", "k2", "random 12", ORANGE),
    ("best 12,\ntrained on", "k2", "best 12, trained on", BLUE),
    ("random 12,\ntrained on", "k2", "random 12, trained on", ORANGE),
    ("LoRA,\nsame size", "lora", "all", RED),
)


def plot(out: Path = HERE) -> None:
    cells = read(out / "results")
    figure = plt.figure(figsize=(13, 8))
    top, bottom = figure.subfigures(2, 1, height_ratios=(1, 1.15))  # pyright: ignore[reportGeneralTypeIssues]
    panels = (
        ("threes", "(a) latents of unseen 3s that decode to 3"),
        ("flips", "(b) of those that decoded to 8, how many flip to 3"),
        ("eights", "latents of real 8s that become 3"),
    )
    for axis, (what, title) in zip(top.subplots(1, 3, sharey=True), panels):
        for place, (_, adapter, when, colour) in enumerate(BARS):
            found = scores(cells, adapter, when, what)
            axis.bar(place, fmean(found), color=colour, width=0.7, alpha=0.85)
            axis.plot([place] * len(found), found, "o", color="black", markersize=3)
        axis.set_xticks(range(len(BARS)), [bar[0] for bar in BARS], rotation=40, ha="right", fontsize=8)
        axis.set_title(title, fontsize=10)
        axis.set_ylim(0, 1)
    top.axes[0].set_ylabel("share read as 3 (dots: seeds)")

    shown = cells["s0-k2"]["influence"]
    maps = torch.tensor(shown["maps"])
    before, after = torch.tensor(shown["before"]), torch.tensor(shown["after"])
    limit = maps.abs().max().item()
    pictures = [(before, "before"), (after, "12 atoms"), (after - before, "change"), (maps.sum(0), "sum of maps")]
    pictures += list(zip(maps, shown["addresses"]))
    for place, (axis, (picture, title)) in enumerate(zip(bottom.subplots(2, 8).flat, pictures)):
        if place < 2:
            axis.imshow(picture, cmap="gray", vmin=0, vmax=1)
        else:
            bound = 1.0 if place < 4 else limit
            drawn = axis.imshow(picture, cmap="RdBu_r", vmin=-bound, vmax=bound)
        axis.set_title(title, fontsize=9)
        axis.set_xticks([])
        axis.set_yticks([])
    bottom.colorbar(drawn, ax=bottom.axes, shrink=0.7, label="brightness an atom adds (red) or takes (blue)")
    bottom.suptitle("(c) an 8 that becomes a 3, and the influence map of each of the 12 atoms", fontsize=10)
    save(figure, out / "figure.png")


if __name__ == "__main__":
    plot()
