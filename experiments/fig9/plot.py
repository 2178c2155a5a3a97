"""Figure 9, drawn: error against atoms a signal for each σ; the atoms; how Fourier-like they are."""

from pathlib import Path
from statistics import fmean

import torch

from experiments.cells import read
from experiments.fig9.run import GROUNDS, KINDS
from experiments.figures import BLUE, GREEN, GREY, ORANGE, PURPLE, RED, plt, save

HERE = Path(__file__).parent
COLOURS = dict(zip(KINDS, (GREY, BLUE, GREEN, ORANGE, RED, PURPLE)))
MARKS = dict(zip(KINDS, "sovD^P"))


def plot(out: Path = HERE) -> None:
    cells = read(out / "results")
    figure = plt.figure(figsize=(12, 4.6))
    left, right = figure.subfigures(1, 2, width_ratios=(1.15, 1))  # pyright: ignore[reportGeneralTypeIssues]
    axis = left.subplots()
    for kind, label in KINDS.items():
        mine = sorted((fmean(v["active"]), v["nmse"]) for name, v in cells.items() if name.startswith(f"5-{kind}-"))
        if not mine or kind == "dense":
            continue
        active, nmse = [x for x, _ in mine], [fmean(y) for _, y in mine]
        low, high = [fmean(y) - min(y) for _, y in mine], [max(y) - fmean(y) for _, y in mine]
        style = {"color": COLOURS[kind], "marker": MARKS[kind], "markersize": 5, "capsize": 2, "linewidth": 1}
        axis.errorbar(active, nmse, yerr=(low, high), label=label, **style)
    dense = fmean(cells["5-dense-100"]["nmse"])
    axis.annotate(f"dense: 100 atoms,\nNMSE {dense:.0e}", (100, 1.2e-4), ha="right", fontsize=8, color=GREY)
    axis.set_ylim(1e-4, 1)
    axis.axvline(9, color="black", linewidth=0.7, linestyle=":")
    axis.set(xscale="log", yscale="log", xlim=(2, 115), xlabel="atoms a signal uses, of 100", ylabel="error (NMSE)")
    axis.set_xticks([2, 5, 9, 16, 32, 64, 100], labels=["2", "5", "9", "16", "32", "64", "100"])
    axis.set_xticks([], minor=True)
    axis.set_title("5 fixed frequencies: error against sparsity (bars: all seeds)", fontsize=10)
    axis.legend(frameon=False, fontsize=8)
    name = "5of25-topk-9" if "5of25-topk-9" in cells else "5-topk-9"
    values = cells[name]
    for axis, atom in zip(right.subplots(3, 3, sharex=True).flat, values["atoms of seed 0"]):
        spectrum = torch.fft.rfft(torch.tensor(atom)).abs()
        axis.plot(atom, color=BLUE, linewidth=0.9)
        axis.set_title(f"peak at {spectrum.argmax().item()}/64", fontsize=8)
        axis.set_yticks([])
        axis.set_xticks([0, 63])
    right.supxlabel("time (samples)", fontsize=9)
    right.suptitle(
        f"The 9 largest atoms of top-9; frequencies: {GROUNDS[name.split('-')[0]]}\ncosine to the nearest basis "
        f"{fmean(values['similarity']):.2f} (random {fmean(values['similarity of random']):.2f})",
        fontsize=10,
    )
    save(figure, out / "figure.png")


if __name__ == "__main__":
    plot()
