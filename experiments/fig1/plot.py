"""Figure 1, drawn: 8s that turn into 3s, how many do, and what each of 12 atoms does to one."""

from pathlib import Path
from statistics import fmean

import torch

from experiments.common.cells import read
from experiments.common.figures import BLUE, GREEN, GREY, ORANGE, RED, SKY, SMALL, plt, save
from experiments.common.report import DOCS
from experiments.fig1.run import SHOWN, scores

HERE = Path(__file__).parent
BARS = (
    ("before", "k2", "before", GREY),
    ("all atoms", "k2", "all, trained on", SKY),
    ("best 12, as cut", "k2", "best 12", BLUE),
    ("random 12, as cut", "k2", "random 12", ORANGE),
    ("best 12, trained on", "k2", "best 12, trained on", BLUE),
    ("random 12, trained on", "k2", "random 12, trained on", ORANGE),
    ("12 from the start", "twelve", "all, trained on", GREEN),
    ("LoRA, same size", "lora", "all, trained on", RED),
)


def plot(out: Path = HERE, docs: Path = DOCS) -> None:
    cells = read(out)
    figure = plt.figure(figsize=(11, 13))
    pictures, rates, maps = figure.subfigures(3, 1, height_ratios=(1.1, 1.5, 1.75))  # pyright: ignore[reportGeneralTypeIssues]

    shown = cells["s0-k2"]["influence"]
    before, after = torch.tensor(shown["before"]), torch.tensor(shown["after"])
    for row, (axes, found) in enumerate(zip(pictures.subplots(2, SHOWN), (before, after))):
        for axis, picture in zip(axes, found):
            axis.imshow(picture, cmap="gray", vmin=0, vmax=1)
        axes[0].set_ylabel(("before", "12 atoms")[row])
    pictures.suptitle("(a) latents of unseen 3s: the frozen decoder draws 8s, with 12 atoms it draws 3s")

    panels = (
        ("threes", "latents of unseen 3s"),
        ("flips", "those that were 8s (flips)"),
        ("eights", "latents of real 8s"),
    )
    for axis, (what, title) in zip(rates.subplots(1, 3, sharey=True), panels):
        for place, (_, adapter, when, colour) in enumerate(BARS):
            if found := scores(cells, adapter, when, what):
                axis.barh(place, fmean(found), color=colour, height=0.7)
                axis.plot(found, [place] * len(found), "o", color="black", markersize=3.5)
        axis.set_yticks(range(len(BARS)), [bar[0] for bar in BARS])
        axis.set(title=title, xlim=(0, 1), xticks=[0, 0.5, 1], xlabel="share read as 3")
    rates.axes[0].invert_yaxis()
    rates.suptitle("(b) how many become 3s (dots: seeds; real 8s should not)")

    each = torch.tensor(shown["maps"])
    change = after[0] - before[0]
    drawn = [(before[0], "before"), (after[0], "12 atoms"), (change, "change"), (each.sum(0), "sum of maps")]
    drawn += list(zip(each, shown["addresses"]))
    limit = each.abs().max().item() / 2  # so that the weak maps are seen too
    for place, (axis, (picture, title)) in enumerate(zip(maps.subplots(2, 8).flat, drawn)):
        if place < 2:
            axis.imshow(picture, cmap="gray", vmin=0, vmax=1)
        else:
            colours = axis.imshow(picture, cmap="RdBu_r", vmin=-limit, vmax=limit)
        axis.set_title(title, fontsize=SMALL)
    bar = {"shrink": 0.5, "aspect": 40, "location": "bottom", "extend": "both"}
    maps.colorbar(colours, ax=maps.axes, label="brightness added (red) or taken (blue)", **bar)
    maps.suptitle("(c) the first of these 8s, and the influence map of each of the 12 atoms on it")
    for axis in (*pictures.axes, *maps.axes[:16]):
        axis.set_xticks([])
        axis.set_yticks([])
        axis.spines[:].set(visible=True, color=GREY, linewidth=0.5)
    save(figure, docs / "results" / "figures" / "fig1.png")
