"""What the atoms explain of each layer of the LoRA."""

from pathlib import Path

from experiments.common.cells import read
from experiments.common.figures import BLUE, GREEN, ORANGE, plt, save
from experiments.common.report import DOCS
from experiments.distill.run import DENSITIES, NAMES

HERE = Path(__file__).parent


def plot(out: Path = HERE, docs: Path = DOCS) -> None:
    found = read(out)
    drawn, axes = plt.subplots(1, len(NAMES), figsize=(6 * len(NAMES), 3.6), sharey=True, squeeze=False)
    for axis, name in zip(axes[0], NAMES):
        for (label, _), colour in zip(DENSITIES.items(), (ORANGE, BLUE, GREEN)):
            energy = [100 * value for value in found[f"{name}-{label}"]["layers"].values()]
            axis.plot(energy, color=colour, marker="o", markersize=3, linewidth=1, label=f"density {label}")
        axis.set(title=name, xlabel="layer (q, k, v and out of each block)")
    axes[0][0].set_ylabel("energy explained, %")
    axes[0][0].legend()
    save(drawn, docs / "results" / "figures" / "distill.png")
