"""Error against atoms a token, when σ comes before the attention map and when it comes after; the same on digits."""

from pathlib import Path
from statistics import fmean

from experiments.common.cells import read
from experiments.common.figures import BLUE, GREEN, ORANGE, SMALL, plt, save
from experiments.common.report import DOCS
from experiments.orders.run import label, on_digits

HERE = Path(__file__).parent


def plot(out: Path = HERE, docs: Path = DOCS) -> None:
    cells, digits = read(out), on_digits(out)
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.8), width_ratios=(1.5, 1))
    axis = axes[0]
    for ground, colour, mark in (("noisy", ORANGE, "o"), ("clean", GREEN, "D")):
        mine = {name: v for name, v in cells.items() if f"-{ground}-" in name}
        before = sorted((fmean(v["active"]), fmean(v["nmse"])) for name, v in mine.items() if "before" in name)
        if not before:
            continue
        told = "noisy channels" if ground == "noisy" else "proportional channels"
        axis.plot(*zip(*before), color=colour, marker=mark, label=f"σ before the map, {told}")
        after = mine[f"signals-{ground}-after-9"]
        style = {"marker": mark, "markersize": 11, "markeredgewidth": 2, "markerfacecolor": "none", "linestyle": "none"}
        axis.plot(fmean(after["active"]), fmean(after["nmse"]), color=BLUE, label=f"σ after it, k = 9, {told}", **style)
    axis.set(xscale="log", yscale="log", xlabel="atoms a token uses, of 100", ylabel="error (NMSE)", title="signals")
    axis.set_xticks([1, 3, 9, 20, 40], labels=["1", "3", "9", "20", "40"])
    axis.set_xticks([], minor=True)
    axis.set_yticks([0.02, 0.05, 0.1, 0.2, 0.4], labels=["0.02", "0.05", "0.1", "0.2", "0.4"])
    axis.set_yticks([], minor=True)
    axis.legend(loc="upper right")
    axis = axes[1]
    for place, (order, found) in enumerate(digits.items()):
        active, rate = fmean(v["atoms a token"] for v in found), fmean(v["all"]["threes"] for v in found)
        axis.bar(place, active, 0.7, color=BLUE if order.startswith("after") else ORANGE)
        axis.annotate(
            f"{active:.0f} atoms\n{rate:.0%} read as 3", (place, active), ha="center", va="bottom", fontsize=SMALL
        )
    axis.set_xticks(range(len(digits)), [label(order).replace(" the map, ", "\n") for order in digits])
    axis.set(xlabel="σ before or after the map", ylabel="atoms a token uses, of 100", title="digits")
    axis.set_ylim(0, 1.25 * axis.get_ylim()[1])
    save(figure, docs / "results" / "figures" / "orders.png")
