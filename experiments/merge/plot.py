"""Two prompts of each subject, a column for each way to put subject and style together."""

from pathlib import Path

from experiments.common.cells import read
from experiments.common.figures import plt, save
from experiments.common.report import DOCS
from experiments.common.styles import OPENMOJI
from experiments.merge.run import COLUMNS, EXAMPLES, IN_STRIP, NUM, draw, real

HERE = Path(__file__).parent


def pictures(docs: Path = DOCS, quick: bool = False) -> None:
    """Two prompts of each subject, a column for each way, the numbers below."""
    results, per_subject = read(HERE), 2
    columns = ["real-subject", *IN_STRIP, "real-style"]
    titles = ["the subject", *(COLUMNS[column][0] for column in IN_STRIP), "OpenMoji's own\n(never shown)"]
    figure, axes = plt.subplots(
        len(EXAMPLES) * per_subject, len(columns), figsize=(1.35 * len(columns), 1.5 * len(EXAMPLES) * per_subject)
    )
    for s, name in enumerate(EXAMPLES):
        for c, column in enumerate(columns):
            own = OPENMOJI if column == "real-style" else None
            images = real(name, own) if column.startswith("real-") else draw(name, OPENMOJI, column)[::NUM]
            for p in range(per_subject):
                ax = axes[s * per_subject + p, c]
                ax.imshow(images[p], interpolation="nearest")
                ax.set_xticks([])
                ax.set_yticks([])
                ax.spines[:].set_visible(False)
            values = results[f"{name}-{OPENMOJI.word}-{column}"]
            ax.set_xlabel(f"subject {values['subject']:.2f}\noutline {values['outline']:.2f}", fontsize=9)
    for ax, title in zip(axes[0], titles):
        ax.set_title(title, fontsize=10)
    save(figure, docs / "how-to" / "merge.png")
