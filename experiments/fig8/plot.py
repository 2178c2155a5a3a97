"""Figure 8, drawn: one row per frequency."""

from pathlib import Path

from experiments.common.figures import BLUE, RED, SMALL, plt, save
from experiments.common.report import DOCS
from experiments.common.signals import HIGH, LENGTH, fourier_bases

HERE = Path(__file__).parent


def plot(out: Path = HERE, docs: Path = DOCS) -> None:
    figure, axes = plt.subplots(3, 11, figsize=(11, 4), sharex=True, sharey=True)
    for f, (axis, basis) in enumerate(zip(axes.flat, fourier_bases())):
        axis.plot(basis, color=RED if f in HIGH else BLUE, linewidth=0.9)
        axis.set_title(f"{f}/{LENGTH}", fontsize=SMALL)
        axis.set_yticks([])
        axis.set_xticks([0, LENGTH - 1])
        axis.tick_params(labelsize=SMALL)
    figure.supxlabel("time (samples)")
    figure.suptitle("Fourier bases: low frequencies (blue) to pretrain on, high ones (orange) to fine-tune on")
    save(figure, docs / "results" / "figures" / "fig8.png")
