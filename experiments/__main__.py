"""Run every experiment, draw every figure, write every page: `python -m experiments [--quick] [--only fig2 ...]`.

Results that are there are kept, so a run that was stopped goes on where it stopped. `--quick` runs a small slice of
each into runs/experiments-quick instead, to see that everything works; its numbers mean nothing.
"""

import argparse
import importlib
import shutil
from pathlib import Path

from experiments.cells import read, run_cells
from experiments.report import ROOT, fill, verdicts, write_page

NAMES = ("fig8", "fig9", "fig2", "fig1", "a1", "orders")


def main(
    quick: bool = False,
    only: tuple[str, ...] = NAMES,
    train: bool = True,
    out: Path | None = None,
    page: Path | None = None,
) -> None:
    out = out or (ROOT / "runs" / "experiments-quick" if quick else ROOT / "experiments")
    page = page or (out / "paper.md" if quick else ROOT / "docs" / "results" / "paper.md")
    claims, titles = {}, {}
    for name in NAMES:
        source, folder = ROOT / "experiments" / name, out / name
        run = importlib.import_module(f"experiments.{name}.run")
        grid = run.grid(quick)
        if name in only and train:
            run_cells(folder / "results", grid, run.measure)
        if missing := len(grid.keys() - read(folder / "results").keys()):
            print(f"{name}: {missing} of {len(grid)} cells are missing, so the page leaves it out")
            continue
        if quick:
            shutil.copy(source / "README.md", folder)
        if name in only:
            importlib.import_module(f"experiments.{name}.plot").plot(folder, page.parent / "figures" / f"{name}.png")
        claims[name] = run.claims(folder)
        titles[name] = (source / "README.md").read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
        fill(folder / "README.md", f"{run.results(folder)}\n\n{verdicts(claims[name])}")
    write_page(page, claims, titles)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a small slice, into runs/experiments-quick")
    parser.add_argument("--only", nargs="+", default=NAMES, choices=NAMES, help="these experiments alone")
    parser.add_argument("--no-train", action="store_true", help="figures and pages from the results that are there")
    options = parser.parse_args()
    main(options.quick, tuple(options.only), not options.no_train)
