"""Count what a run and the files of strangers survive: `python -m benchmarks.reliability [--only kills]`.

Every part writes what it counted into benchmarks/reliability/results.json as soon as it is done, and the page
docs/results/reliability.md is made from that file. All of it takes about four hours on one core, most of them the
precisions, which go on from what is stored.
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from atomtune.files import write_text
from benchmarks.reliability import page

FILE = Path(__file__).with_name("results.json")


def _results() -> dict[str, Any]:
    return json.loads(FILE.read_text(encoding="utf-8")) if FILE.is_file() else {}


def kills(folder: Path, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    from benchmarks.reliability.kills import measure

    return measure(folder, options.kills)


def fuzzing(folder: Path, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    from benchmarks.reliability.fuzzing import measure

    yield measure(folder, options.inputs)


def precision(folder: Path, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    from benchmarks.reliability.precision import measure

    return measure(folder, _results().get("precision"))


def guided(folder: Path, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    from benchmarks.reliability.guided import measure

    yield measure(folder, options.seconds)


def cells(folder: Path, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    from benchmarks.reliability.cells import measure

    yield measure(folder, options.seeds)


PARTS: dict[str, Callable[[Path, argparse.Namespace], Iterator[dict[str, Any]]]] = {
    "kills": kills,
    "cells": cells,
    "fuzzing": fuzzing,
    "guided": guided,
    "precision": precision,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[*PARTS], choices=[*PARTS], help="these parts alone")
    parser.add_argument("--kills", type=int, default=50, help="kills by each signal (50)")
    parser.add_argument("--inputs", type=int, default=3500, help="spoiled files of each kind (3,500)")
    parser.add_argument("--seconds", type=int, default=60, help="for each kind of file, guided by coverage (60)")
    parser.add_argument("--seeds", type=int, default=10, help="of the sweep, four cells each (10)")
    options = parser.parse_args()
    for name in options.only:
        with tempfile.TemporaryDirectory() as folder:
            for found in PARTS[name](Path(folder), options):
                results = _results() | {name: found}
                write_text(FILE, json.dumps(results, indent=1) + "\n")
                page.write(results)


if __name__ == "__main__":
    main()
