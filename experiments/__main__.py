"""Run experiments, draw their figures, write their pages: `python -m experiments [--only fig2 ...] [--quick]`.

Without `--only`, what is missing of the paper's small experiments is run (twenty minutes of one core), and every
figure and page is made from the results that are there. The others, which take hours, run when they are named. A cell
that is there with its settings is kept, so what was stopped goes on where it stopped. `--quick` runs a small slice into
runs/experiments-quick instead, to see that everything works; its numbers mean nothing.
"""

import argparse
import shutil
from collections.abc import Sequence
from fnmatch import fnmatchcase
from importlib import import_module
from pathlib import Path
from typing import Any

from experiments import pages
from experiments.common.cells import read, run_cells
from experiments.common.report import DOCS, ROOT, fill, verdicts

SMALL = ("fig1", "fig2", "fig8", "fig9", "a1", "orders")
LONG = (
    "six_subjects",
    "drift",
    "customization",
    "costs",
    "single",
    "importance",
    "influence",
    "lora",
    "stability",
    "prune",
    "density",
    "compact",
    "merge",
    "edit",
    "activations",
    "distill",
    "language_model",
    "moji_first_look",
    "moji_trials",
    "moji_onward",
    "tracing",
)
NAMES = SMALL + LONG
EVERY = ("*",)


def main(
    only: Sequence[str] = (),
    cells: Sequence[str] = EVERY,
    quick: bool = False,
    train: bool = True,
    jobs: int = 1,
    ray: str | None = None,
    out: Path | None = None,
    docs: Path | None = None,
) -> None:
    """Results are kept in the folders of `out`, figures and pages go to `docs`."""
    out = out or (ROOT / "runs" / "experiments-quick" if quick else ROOT / "experiments")
    docs = docs or (out / "docs" if quick else DOCS)
    written = set()
    for name in only or NAMES:
        run, folder, source = import_module(f"experiments.{name}.run"), out / name, ROOT / "experiments" / name
        grid = run.grid(quick)
        if train and (name in only or name in SMALL):
            done: dict[str, Any] = {}
            while grid.keys() - done.keys():  # what was found may ask for more
                chosen = {key: one for key, one in grid.items() if any(fnmatchcase(key, pattern) for pattern in cells)}
                # The small ones on one thread: they gain nothing from more, and their sums do not depend on the cores.
                run_cells(folder, chosen, run.measure, threads=1 if name in SMALL else None, jobs=jobs, ray=ray)
                done, grid = grid, run.grid(quick)
        found = read(folder)
        if missing := len(grid.keys() - found.keys()):
            print(f"{name}: {missing} of {len(grid)} cells are missing")
        if not found or (missing and (name in SMALL or tuple(cells) != EVERY)):
            continue
        if quick:
            shutil.copy(source / "README.md", folder)
        if (source / "plot.py").is_file():
            figures = import_module(f"experiments.{name}.plot")
            if hasattr(figures, "plot"):
                figures.plot(folder, docs)
            if train and name in only and hasattr(figures, "pictures"):
                figures.pictures(docs, quick)
        claims = run.claims(folder) if hasattr(run, "claims") else []
        fill(folder / "README.md", "\n\n".join(filter(None, (run.results(folder), verdicts(claims)))))
        written.add(name)
    pages.write(written, out, docs)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=(), choices=NAMES, metavar="NAME", help=f"of {', '.join(NAMES)}")
    parser.add_argument("--cells", nargs="+", default=EVERY, metavar="CELL", help="these alone; * stands for anything")
    parser.add_argument("--quick", action="store_true", help="a small slice, into runs/experiments-quick")
    parser.add_argument("--no-train", action="store_true", help="figures and pages from the results that are there")
    parser.add_argument("--jobs", type=int, default=1, help="processes beside each other, of one thread each")
    parser.add_argument("--ray", metavar="ADDRESS", help="a Ray cluster on which the cells run (extra cluster)")
    options = parser.parse_args()
    main(options.only, options.cells, options.quick, not options.no_train, options.jobs, options.ray)
