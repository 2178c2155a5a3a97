"""Results on disk: one JSON file per cell, written whole; a cell that is there with the same settings is not run again.

{"settings": {...}, "cpu_seconds": 12.3, "values": {"nmse": [0.002, ...], ...}}       lists run over the seeds
"""

import json
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from atomtune.files import write_text

HERE = Path(__file__).parent


def cell(file: Path, settings: Mapping[str, Any], compute: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
    """The values of one cell: read when they are there for these settings, otherwise computed and written."""
    settings = json.loads(json.dumps(settings))  # tuples become lists, as they will be when read back
    if file.is_file() and (stored := json.loads(file.read_text(encoding="utf-8")))["settings"] == settings:
        return stored["values"]
    start = time.process_time()
    values = plain(compute())
    record = {"settings": settings, "cpu_seconds": round(time.process_time() - start, 1), "values": values}
    write_text(file, json.dumps(record, ensure_ascii=False) + "\n")
    print(f"{file.parent.parent.name}/{file.stem}: {record['cpu_seconds']:.0f} s", flush=True)
    return values


def run_cells(folder: Path, grid: Mapping[str, Any], measure: Callable[[Any], Mapping[str, Any]]) -> None:
    """Run the cells of a grid of configurations (dataclasses) that are not in `folder` yet.

    On one thread: problems this small gain nothing from more, and their sums do not depend on the machine's cores.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for name, config in grid.items():
            cell(folder / f"{name}.json", asdict(config), lambda config=config: measure(config))
    finally:
        torch.set_num_threads(threads)


def read(folder: Path) -> dict[str, dict[str, Any]]:
    """The values of every cell in a folder, by name."""
    return {
        file.stem: json.loads(file.read_text(encoding="utf-8"))["values"]
        for file in sorted(folder.glob("*.json"))
        if not file.name.startswith(".")
    }


def plain(value: Any) -> Any:
    """Tensors as lists, numbers at five significant digits: what JSON holds and a diff can show."""
    if isinstance(value, Tensor):
        return plain(value.tolist())
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


def spread(values: Iterable[float], digits: int = 3) -> str:
    """Mean ± standard deviation over the seeds."""
    values = list(values)
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.fmean(values):.{digits}f} ± {deviation:.{digits}f}"


def number(values: Sequence[float]) -> str:
    """As `spread`; of an error that three digits would show as zero, its order of magnitude."""
    return f"{statistics.fmean(values):.0e}" if statistics.fmean(values) < 5e-4 else spread(values)
