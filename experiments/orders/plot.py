"""How many atoms a token uses when σ comes after the attention map, and when it comes before."""

from pathlib import Path
from statistics import fmean

from experiments.cells import read
from experiments.figures import BLUE, ORANGE, plt, save
from experiments.orders.run import on_digits

HERE = Path(__file__).parent


def plot(out: Path = HERE) -> None:
    cells, digits = read(out / "results"), on_digits(out)
    groups = []
    for ground, label in (("clean", "signals,\nproportional channels"), ("noisy", "signals,\nnoisy channels")):
        pair = [cells.get(f"signals-{ground}-{order}-9") for order in ("after", "before")]
        if all(pair):
            groups.append((label, 9, [(v["active"], f"NMSE {fmean(v['nmse']):.3f}") for v in pair if v]))
    if digits["before"]:
        pair = [
            (
                [v["atoms a token"] for v in digits[order]],
                f"read as 3: {fmean(v['all']['threes'] for v in digits[order]):.2f}",
            )
            for order in ("after", "before")
        ]
        groups.append(("digits", 2, pair))
    figure, axis = plt.subplots(figsize=(7, 4))
    for place, (_, k, pair) in enumerate(groups):
        for shift, (active, told), colour in zip((-0.2, 0.2), pair, (BLUE, ORANGE)):
            axis.bar(place + shift, fmean(active), 0.36, color=colour)
            axis.annotate(told, (place + shift, max(active)), ha="center", va="bottom", fontsize=8)
        axis.plot([place - 0.42, place + 0.42], [k, k], color="black", linewidth=1, linestyle=":")
    axis.set_xticks(range(len(groups)), [group[0] for group in groups])
    axis.set_ylabel("atoms a token uses, of 100 (dotted: k)")
    axis.bar(0, 0, color=BLUE, label="σ(A X W_s) D: σ after the map")
    axis.bar(0, 0, color=ORANGE, label="A σ(X W_s) D: σ before it")
    axis.legend(frameon=False, loc="upper left", fontsize=9)
    axis.set_ylim(0, 1.25 * axis.get_ylim()[1])
    save(figure, out / "figure.png")


if __name__ == "__main__":
    plot()
