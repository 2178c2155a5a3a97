"""How concentrated, local and separable the units of atoms and LoRA are."""

from pathlib import Path
from statistics import fmean

from experiments.common.cells import read
from experiments.common.figures import BLUE, GREEN, GREY, ORANGE, plt, save
from experiments.common.report import DOCS
from experiments.common.steering import FULL, METHODS
from experiments.lora.run import best_ranking, influence_of, shares

HERE = Path(__file__).parent


def plot(out: Path = HERE, docs: Path = DOCS) -> None:
    if not (found := read(out)) or not read(out.parent / "influence"):
        return
    drawn, axes = plt.subplots(1, 3, figsize=(12, 3.8), width_ratios=(1.5, 1, 1))
    colours = dict(zip(METHODS, (BLUE, ORANGE, GREEN)))
    for method, title in METHODS.items():
        by = best_ranking(found, method)
        part = 100 * shares(found, method, by)
        counts = FULL.counts[: part.shape[1]]
        axes[0].plot(counts, part.mean(0), color=colours[method], marker="o", label=f"{title} (by {by})")
        axes[0].vlines(counts, part.min(0), part.max(0), color=colours[method], linewidth=2, alpha=0.4)
    axes[0].set_xscale("log")
    axes[0].set_xticks(FULL.counts, [str(count) for count in FULL.counts])
    axes[0].axhline(0, color=GREY, linewidth=0.8)
    axes[0].set_xlabel("units kept over the whole model")
    axes[0].set_ylabel("fidelity gain left, %")
    axes[0].legend(frameon=False, fontsize=9)
    for axis, keys, title in (
        (axes[1], {"map coverage": "codes", "influence coverage": "influence"}, "share of the picture a unit covers"),
        (axes[2], {"additivity": "in a block", "additivity of all": "in the model"}, "error of addition"),
    ):
        for shift, method in zip((-0.25, 0, 0.25), METHODS):
            for spot, key in enumerate(keys):
                values = influence_of(out, method, key)
                axis.bar(spot + shift, fmean(values), 0.22, color=colours[method])
                axis.vlines(spot + shift, min(values), max(values), color="black", linewidth=1)
        axis.set_xticks(range(len(keys)), list(keys.values()))
        axis.set_title(title, fontsize=10)
    save(drawn, docs / "results" / "figures" / "steering-lora.png")
