"""Two prompts of each subject, a column for each way to put subject and style together."""

from pathlib import Path

from experiments.common import openmoji, subjects
from experiments.common.cells import read
from experiments.common.figures import plt, save
from experiments.common.report import DOCS
from experiments.merge.run import COLUMNS, IN_STRIP, NUM, SUBJECTS, draw, real

HERE = Path(__file__).parent


def pictures(docs: Path = DOCS, quick: bool = False) -> None:
    """Two prompts of each subject, a column for each way, the numbers below."""
    results, per_subject = read(HERE), 2
    columns = [f"real-{subjects.STYLE}", *IN_STRIP, f"real-{openmoji.STYLE}"]
    titles = ["the subject", *(COLUMNS[column][0] for column in IN_STRIP), "OpenMoji's own\n(never shown)"]
    figure, axes = plt.subplots(
        len(SUBJECTS) * per_subject, len(columns), figsize=(1.35 * len(columns), 1.5 * len(SUBJECTS) * per_subject)
    )
    for s, name in enumerate(SUBJECTS):
        for c, column in enumerate(columns):
            drawn = column.removeprefix("real-")
            images = real(name, drawn) if drawn != column else draw(name, column)[::NUM]
            for p in range(per_subject):
                ax = axes[s * per_subject + p, c]
                ax.imshow(images[p], interpolation="nearest")
                ax.set_xticks([])
                ax.set_yticks([])
                ax.spines[:].set_visible(False)
            values = results[f"{name}-{column}"]
            ax.set_xlabel(f"subject {values['subject']:.2f}\noutline {values['outline']:.2f}", fontsize=9)
    for ax, title in zip(axes[0], titles):
        ax.set_title(title, fontsize=10)
    save(figure, docs / "how-to" / "merge.png")
