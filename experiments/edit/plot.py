"""A row a case: the picture, and the first picture of each column."""

from pathlib import Path

from atomtune import sampling
from experiments.common.report import DOCS
from experiments.edit.run import CASES, COLUMNS, folder_of, opened_image


def pictures(docs: Path = DOCS, quick: bool = False) -> None:
    """From the images that measuring left in the cache."""
    rows = [[opened_image(folder_of(case) / f"{column}.png") for column in COLUMNS] for case in CASES.values()]
    sheet = sampling.grid(rows, [case.prompts[1] for case in CASES.values()], COLUMNS)
    sampling.save_png(sheet, docs / "how-to" / "edit.png")
