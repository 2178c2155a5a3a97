"""Many runs: folders × methods × options × seeds, each an ordinary run of `customize` in a folder of its own.

    folders:                          what to learn, with its class name
      photos/teapot: teapot
    methods: [atoms, lora]
    options:                          sets of options, by a name of yours
      slow: {learning_rate: 1.0e-3}
      fast: {learning_rate: 1.0e-2}
    seeds: [0, 1]
    out: runs/sweep
    steps: 100                        any other option of customize, for every run

A cell that is done keeps its numbers, and one that was stopped goes on, because its folder is a run that `customize`
recognises by its settings. On a Ray cluster the cells are Ray's tasks: placement, retries and what happens when a
machine fails are Ray's own.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from atomtune import manifest
from atomtune.errors import UserError
from atomtune.files import expanded, write_text
from atomtune.training import configure, customize
from atomtune.training.config import CustomizeConfig
from atomtune.training.recipes import load_recipe

TABLE = "results.csv"
COLUMNS = ("fidelity", "alignment", "held_loss", "held_loss_before", "steps", "seconds", "adapter_bytes")
KEYS = ("folders", "methods", "options", "seeds", "out")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cell:
    """One run of a sweep."""

    name: str
    """The name of its folder: "teapot-atoms-fast-0"."""
    config: CustomizeConfig


def read_sweep(file: Path) -> tuple[Path, list[Cell]]:
    """The folder of a sweep and its cells, from a YAML file. Raises `UserError`, before anything is trained, if one of
    them cannot be."""
    given = load_recipe(file)
    common = {name: value for name, value in given.items() if name not in KEYS}
    folders: Any = given.get("folders")
    options: Any = given.get("options", {"": {}})
    for name, value in (("folders", folders), ("options", options)):
        if not isinstance(value, dict) or not value:
            expected = {"folders": "'photos/teapot: teapot'", "options": "'fast: {learning_rate: 0.01}'"}[name]
            raise UserError(f"{name} in {file} must be a mapping, such as {expected}, got {value!r:.100}.")
    if not all(isinstance(each, dict) for each in options.values()):
        raise UserError(f"each of the options in {file} must be a mapping, such as 'fast: {{learning_rate: 0.01}}'.")
    methods, seeds = given.get("methods", ["atoms"]), given.get("seeds", [0])
    if not (isinstance(methods, list) and isinstance(seeds, list) and isinstance(given.get("out"), str)):
        raise UserError(f"{file} needs lists of methods and seeds, and a folder out.")
    out, cells = expanded(given["out"]), {}
    for (folder, word), method, (label, more), seed in itertools.product(
        folders.items(), methods, options.items(), seeds
    ):
        parts = (Path(str(folder)).name, method, label, seed)
        name = re.sub(r"[^\w.-]+", "-", "-".join(str(part) for part in parts if part != ""))
        if name in cells:
            raise UserError(f"two cells of {file} have the name {name}: give their folders or options other names.")
        settings = common | more | {"images": folder, "class_name": word, "method": method, "seed": seed}
        cells[name] = Cell(name, configure(**settings, out=out / name))
    return out, list(cells.values())


def sweep(
    file: Path, ray: str | None = None, on_cell: Callable[[str, Mapping[str, Any] | UserError], None] = lambda *_: None
) -> list[dict[str, Any]]:
    """Run the cells that are not done, and return the rows of the table, which `OUT/results.csv` also has.

    `ray` is the address of a Ray cluster whose machines share the folders; without it the cells run here, one after the
    other. `on_cell(name, summary)` is called as cells are done, with a `UserError` for one that was refused or failed;
    the others go on, and it has no row. Raises `UserError` if the file cannot be read, or the cluster not be reached.
    """
    out, cells = read_sweep(file)
    manifest.refuse_foreign(out, TABLE)
    manifest.record(out, out / TABLE)
    done = list(cells)
    for name, found in _here(cells) if ray is None else _on_ray(cells, ray):
        if isinstance(found, UserError):  # there may be another run's numbers
            done = [cell for cell in done if cell.name != name]
        _write(out, done)
        on_cell(name, found)
    return _write(out, done)


def _here(cells: list[Cell]) -> Iterator[tuple[str, dict[str, Any] | UserError]]:
    for cell in cells:
        yield cell.name, _run(cell.config)


def _run(config: CustomizeConfig) -> dict[str, Any] | UserError:
    try:
        return customize(config)
    except UserError as error:
        return error
    except Exception as error:  # out of memory, say: no reason to lose the other cells
        logger.exception("a run of the sweep failed, into %s", config.out)
        return UserError(f"{type(error).__name__}: {' '.join(str(error).split()):.300}")


def _on_ray(cells: list[Cell], address: str) -> Iterator[tuple[str, dict[str, Any] | UserError]]:
    try:
        import ray
    except ImportError as error:
        raise UserError("a Ray cluster needs ray: install it with pip install 'atomtune[cluster]'.") from error
    try:
        ray.init(address, ignore_reinit_error=True, log_to_driver=False)
    except (ConnectionError, ValueError) as error:
        raise UserError(f"there is no Ray cluster at {address!r} ({' '.join(str(error).split()):.200}).") from error
    run = ray.remote(_run).options(max_retries=-1, scheduling_strategy="SPREAD")
    # Paths that mean the same on every machine.
    here = [
        replace(cell.config, images=cell.config.images.absolute(), out=cell.config.out.absolute()) for cell in cells
    ]
    waiting = {run.remote(config): cell.name for cell, config in zip(cells, here)}
    while waiting:
        (done,), _ = ray.wait([*waiting], num_returns=1)
        yield waiting.pop(done), ray.get(done)


def _write(out: Path, cells: list[Cell]) -> list[dict[str, Any]]:
    """The table of the cells that are done, in their order, from their own numbers."""
    rows = []
    for cell in cells:
        file = out / cell.name / "summary.json"
        if file.is_file():
            numbers = json.loads(file.read_text(encoding="utf-8"))
            rows.append({"cell": cell.name} | {name: numbers[name] for name in COLUMNS if name in numbers})
    columns = ["cell", *(name for name in COLUMNS if any(name in row for row in rows))]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(out / TABLE, text.getvalue())
    return rows
