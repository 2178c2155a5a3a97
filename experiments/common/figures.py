"""One look for all figures: white ground, Okabe–Ito colours that colour-blind people tell apart."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from atomtune.files import atomic_file

BLUE, ORANGE, GREEN, RED, PURPLE, SKY, GREY = "#0072B2 #E69F00 #009E73 #D55E00 #CC79A7 #56B4E9 #777777".split()
SMALL = 11  # points; the least that is readable when a figure is shown at half its size
plt.rcParams.update(
    {
        "figure.constrained_layout.use": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "font.size": 13,
        "axes.titlesize": 13,
        "figure.titlesize": 13,
        "figure.labelsize": 13,
        "legend.fontsize": SMALL,
        "legend.frameon": False,
    }
)


def save(figure: Figure, file: Path) -> None:
    with atomic_file(file) as temporary:
        # No date and no version inside, so that the same results give the same file.
        figure.savefig(temporary, dpi=110, metadata={"Software": None})
    plt.close(figure)
