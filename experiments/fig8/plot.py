"""Figure 8, drawn: one row per frequency."""

from pathlib import Path

from experiments.figures import BLUE, RED, plt, save
from experiments.signals import HIGH, LENGTH, fourier_bases

HERE = Path(__file__).parent


def plot(out: Path = HERE) -> None:
    figure, axes = plt.subplots(3, 11, figsize=(13, 3.6), sharex=True, sharey=True)
    for f, (axis, basis) in enumerate(zip(axes.flat, fourier_bases())):
        axis.plot(basis, color=RED if f in HIGH else BLUE, linewidth=0.9)
        axis.set_title(f"{f}/{LENGTH}", fontsize=9)
        axis.set_yticks([])
        axis.set_xticks([0, LENGTH - 1])
    figure.supxlabel("time (samples)")
    figure.suptitle("Fourier bases: low frequencies (blue) for pretraining, high ones (red) for fine-tuning")
    save(figure, out / "figure.png")


if __name__ == "__main__":
    plot()
