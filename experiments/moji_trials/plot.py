"""Held-out loss against time."""

from pathlib import Path

from experiments.common.figures import plt, save
from experiments.common.report import DOCS
from experiments.moji_trials.run import IDEAS, done

HERE = Path(__file__).parent


def plot(out: Path = HERE, docs: Path = DOCS) -> None:
    """Held-out loss against time, a line an idea."""
    drawn, axis = plt.subplots(figsize=(10, 4))
    for i, (name, one) in enumerate(done(out).items()):
        minutes, losses = zip(*((at["seconds"] / 60, at["loss"]) for at in one["losses"]), strict=True)
        colour, width = ("black", 2.5) if name.startswith("recipe") else (f"C{i}", 1.5)
        line = ":" if name == "recipe-again" else "-"
        axis.plot(
            minutes, losses, line, color=colour, linewidth=width, marker="o", markersize=4, label=IDEAS[name].title
        )
    axis.set(xlabel="minutes of one core", ylabel="held-out loss", xlim=(0, None))
    axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    save(drawn, docs / "results" / "moji-trials.png")
