"""Figure 9, drawn: error against atoms a signal for each σ; the atoms; how Fourier-like they are."""

from pathlib import Path
from statistics import fmean

import torch

from experiments.common.cells import read
from experiments.common.figures import BLUE, GREEN, GREY, ORANGE, PURPLE, RED, SMALL, plt, save
from experiments.common.report import DOCS
from experiments.fig9.run import GROUNDS, KINDS, of

HERE = Path(__file__).parent
COLOURS = dict(zip(KINDS, (GREY, BLUE, GREEN, ORANGE, RED, PURPLE)))
MARKS = dict(zip(KINDS, "sovD^P"))


def plot(out: Path = HERE, docs: Path = DOCS) -> None:
    cells = read(out)
    figure = plt.figure(figsize=(11, 9))
    top, bottom = figure.subfigures(2, 1, height_ratios=(1.2, 1))  # pyright: ignore[reportGeneralTypeIssues]
    panels = {"5": "5 fixed frequencies", "5of25": "5 of 25 frequencies, anew each signal"}
    panels = {ground: title for ground, title in panels.items() if f"{ground}-dense-100" in cells}
    axes = top.subplots(1, len(panels), squeeze=False)[0]
    for axis, (ground, title) in zip(axes, panels.items()):
        for kind, label in KINDS.items():
            mine = sorted((fmean(v["active"]), v["nmse"]) for v in of(cells, ground, kind))
            if not mine or kind == "dense":
                continue
            active, nmse = [x for x, _ in mine], [fmean(y) for _, y in mine]
            low, high = [fmean(y) - min(y) for _, y in mine], [max(y) - fmean(y) for _, y in mine]
            style = {"color": COLOURS[kind], "marker": MARKS[kind], "markersize": 6, "capsize": 2, "linewidth": 1.2}
            axis.errorbar(active, nmse, yerr=(low, high), label=label, **style)
        error = fmean(cells[f"{ground}-dense-100"]["nmse"])
        shown = max(error, 2e-4)  # an exact layer is an arrow at the edge
        axis.plot(100, shown, "s" if error == shown else "v", color=GREY, markersize=7)
        axis.annotate(f"dense: {error:.2g} ", (90, shown), ha="right", va="center", fontsize=SMALL, color=GREY)
        axis.axvline(9, color="black", linewidth=0.8, linestyle=":")
        axis.set(xscale="log", xlim=(2, 125), xlabel="atoms a signal uses, of 100", title=title)
        if ground == "5":
            axis.set(yscale="log", ylim=(1e-4, 1))
        else:
            axis.set_ylim(0, 0.6)
        axis.set_xticks([2, 5, 9, 16, 32, 64, 100], labels=["2", "5", "9", "16", "32", "64", "100"])
        axis.set_xticks([], minor=True)
    axes[0].set_ylabel("error (NMSE; bars: all seeds)")
    axes[0].legend(loc="lower left")
    name = "5of25-topk-9" if "5of25-topk-9" in cells else "5-topk-9"
    values = cells[name]
    for axis, atom in zip(bottom.subplots(3, 3, sharex=True).flat, values["atoms of seed 0"]):
        spectrum = torch.fft.rfft(torch.tensor(atom)).abs()
        axis.plot(atom, color=BLUE, linewidth=1.2)
        axis.set_title(f"peak at {spectrum.argmax().item()}/64", fontsize=SMALL)
        axis.set_yticks([])
        axis.set_xticks([0, 63])
    bottom.supxlabel("time (samples)")
    bottom.suptitle(
        f"the 9 largest atoms of top-9 on {GROUNDS[name.split('-')[0]]}: cosine to the nearest Fourier basis "
        f"{fmean(values['similarity']):.2f}\n(random vectors in the span of the signals: "
        f"{fmean(values['similarity of random']):.2f})"
    )
    save(figure, docs / "results" / "figures" / "fig9.png")
