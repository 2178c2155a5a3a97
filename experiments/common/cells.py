"""Results on disk: results.jsonl, one line per cell, sorted by name; a cell that is there is not run again.

{"name": "s0-k2", "settings": {...}, "cpu_seconds": 12.3, "values": {"nmse": [0.002, ...], ...}}

Lists run over the seeds. A cell is added when it is done, by a new file in the place of the old one, under a lock: so
a run that is stopped loses the cell it was at alone, and two that run beside each other lose none.
"""

import fcntl
import hashlib
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from atomtune.files import write_text

FILE = "results.jsonl"


def records(folder: Path) -> dict[str, dict[str, Any]]:
    """What is stored of every cell in a folder, by name."""
    file = folder / FILE
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    return {record.pop("name"): record for record in map(json.loads, lines)}


def read(folder: Path) -> dict[str, dict[str, Any]]:
    """The values of every cell in a folder, by name. Those on older weights of moji count until the first is there on
    the weights that ship, so that no table mixes them."""
    found, now = records(folder), weights_digest()
    if now in map(_on_weights, found.values()):
        found = {name: record for name, record in found.items() if _on_weights(record) in (None, now)}
    return {name: record["values"] for name, record in found.items()}


def weights_digest() -> str:
    """Eight letters that stand for moji's weights as they are now."""
    folder = resources.files("atomtune") / "moji" / "weights" / "transformer"
    (file,) = (file for file in folder.iterdir() if file.name.endswith(".safetensors"))
    return hashlib.sha256(file.read_bytes()).hexdigest()[:8]


def _on_weights(record: Mapping[str, Any]) -> str | None:
    """The digest of moji's weights that a cell was run on; None if it does not depend on them."""
    return record.get("settings", {}).get("base")


def measured(*folders: Path, results: str = "../results") -> str:
    """What a page says of its scores: which weights they belong to, and where the judge is judged. `results` leads from
    the page to docs/results."""
    now = weights_digest()
    old = [folder.name for folder in folders if now not in map(_on_weights, records(folder).values())]
    which = "those that ship"
    if old:
        which = "older ones than those that ship" + (f" ({', '.join(old)})" if len(old) < len(folders) else "")
    return f"Weights of moji: {which}; [how good the judge is]({results}/moji.md#the-judge)."


def settings_of(config: Any) -> dict[str, Any]:
    """What a cell is stored with and run again for when it changes: `config.settings`, or all fields of a dataclass."""
    settings = config.settings if hasattr(config, "settings") else asdict(config)
    return json.loads(json.dumps(settings))  # tuples become lists, as they will be when read back


def cell(folder: Path, name: str, config: Any, measure: Callable[[Any], Mapping[str, Any]]) -> dict[str, Any]:
    """The values of one cell: read when they are there for these settings, otherwise measured and written."""
    settings = settings_of(config)
    if (stored := records(folder).get(name)) and stored["settings"] == settings:
        return stored["values"]
    start = time.process_time()
    values = plain(measure(config))
    record = {"settings": settings, "cpu_seconds": round(time.process_time() - start, 1), "values": values}
    if torch.cuda.is_available():
        record["device"] = torch.cuda.get_device_name()
    with _locked(folder):
        cells = records(folder) | {name: record}
        lines = [json.dumps({"name": key} | cells[key], ensure_ascii=False) + "\n" for key in sorted(cells)]
        write_text(folder / FILE, "".join(lines))
    print(f"{folder.name}/{name}: {record['cpu_seconds']:.0f} s", flush=True)
    return values


def run_cells(
    folder: Path,
    grid: Mapping[str, Any],
    measure: Callable[[Any], Mapping[str, Any]],
    threads: int | None = None,
    jobs: int = 1,
    ray: str | None = None,
) -> None:
    """Run the cells of a grid of configurations that are not in `folder` yet, on so many threads (None: as it is), in
    so many processes of one thread each, or on the Ray cluster of this address, whose machines share the folder. There,
    a cell that fails leaves the others alone; at the end its error is raised."""
    if ray is not None or jobs > 1:
        calls = [(folder.absolute(), name, config, measure) for name, config in grid.items()]
        errors = _in_processes(jobs, calls) if ray is None else _on_ray(ray, calls)
        if failed := [error for error in errors if error]:
            raise BaseExceptionGroup(f"{len(failed)} cells failed", failed)
        return
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        for name, config in grid.items():
            cell(folder, name, config, measure)
    finally:
        torch.set_num_threads(before)


def _in_processes(jobs: int, calls: list[tuple]) -> list[BaseException | None]:
    """The error of each of these calls of `cell`, or None."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        return [future.exception() for future in [pool.submit(cell, *call) for call in calls]]


def _on_ray(address: str, calls: list[tuple]) -> list[BaseException | None]:
    """The same. Ray runs what a machine that failed has left on another one."""
    import ray

    ray.init(address, ignore_reinit_error=True, log_to_driver=False)
    run = ray.remote(cell).options(max_retries=-1, scheduling_strategy="SPREAD")
    return [future.exception() for future in [run.remote(*call).future() for call in calls]]


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """No other process adds a cell to this folder meanwhile."""
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


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


def shown(values: np.ndarray, digits: int) -> str:
    """As `spread`, without a deviation that would be shown as zero; "–" if there is no value."""
    if not values.size:
        return "–"
    return spread(values, digits) if np.ptp(values) > 10**-digits else f"{values.mean():,.{digits}f}"


def number(values: Sequence[float]) -> str:
    """As `spread`; of an error that three digits would show as zero, its order of magnitude."""
    return f"{statistics.fmean(values):.0e}" if statistics.fmean(values) < 5e-4 else spread(values)
