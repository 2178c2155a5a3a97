"""The pages in docs/ that are made from results: which experiments are on each, and what writes it."""

from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path

from atomtune.files import write_text
from experiments.common.cells import measured
from experiments.common.report import DOCS, fill
from experiments.drift import run as drift
from experiments.pages import moji, paper, steering


def _own(name: str, out: Path) -> str:
    """The page that is one experiment's alone."""
    return import_module(f"experiments.{name}.run").page(out / name)


def _results(name: str, out: Path) -> str:
    """One experiment's table."""
    return import_module(f"experiments.{name}.run").results(out / name)


def _table(name: str, out: Path) -> str:
    """The generated part of a how-to page."""
    return f"{_results(name, out)}\n\n{measured(out / name)}"


def _summary(out: Path) -> str:
    """README's table, and the frontier with a grid once it is drawn."""
    front = DOCS / "front.png"
    shown = f"![{FRONT}](docs/{front.name})" if front.is_file() else ""
    return "\n\n".join(
        filter(None, [drift.summary(out / "drift"), shown, measured(out / "drift", results="docs/results")])
    )


FRONT = "Alignment and diversity against fidelity over training steps; one subject, learnt and drawn with every method"
PAGES: dict[str, tuple[tuple[str, ...], Callable[[Path], str]]] = {
    "results/paper.md": (paper.EXPERIMENTS, paper.page),
    "results/steering.md": (steering.EXPERIMENTS, steering.page),
    "results/moji.md": (moji.EXPERIMENTS, moji.page),
    "results/activations.md": (("activations",), partial(_own, "activations")),
    "results/distill.md": (("distill",), partial(_own, "distill")),
    "results/drift.md": (("drift",), partial(_own, "drift")),
    "results/language-model.md": (("language_model",), partial(_own, "language_model")),
    "../README.md": (("drift", "customization"), _summary),
    "how-to/merge.md": (("merge",), partial(_table, "merge")),
    "how-to/edit.md": (("edit",), partial(_table, "edit")),
}
"""File, from docs/ → the experiments on it, and its text from the folder of all experiments: of a page in results/ all
of it, of another the generated part."""


def write(names: set[str], out: Path, docs: Path) -> None:
    """The pages that one of these experiments is on, from the results in the folders of `out`."""
    for file, (experiments, text) in PAGES.items():
        if names.intersection(experiments):
            (write_text if file.startswith("results/") else fill)(docs / file, text(out))
