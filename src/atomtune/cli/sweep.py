"""`atomtune sweep`: many runs of `customize`, and one table of their numbers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def sweep(file: Path, *, ray: str | None = None) -> None:
    """Train many adapters, folders × methods × options × seeds, and write their numbers into one table.

    Every cell is an ordinary run in a folder of its own. The same command goes on where it was stopped: cells that are
    done keep their numbers.

    Args:
        file: YAML with `folders` (each with its class name), `methods`, `options` (sets of options by name), `seeds`,
            `out`, and any option of `customize` for all cells.
        ray: Address of a Ray cluster that runs the cells, such as auto or ray-head:6379; its machines must share the
            folders. Without it they run here, one after the other.
    """
    from rich.console import Console

    from atomtune import sweeping

    console = Console()
    _, cells = sweeping.read_sweep(file)
    done = []

    def on_cell(name: str, found: Mapping[str, Any] | ValueError) -> None:
        done.append(name)
        if isinstance(found, ValueError):
            said = str(found)
        else:
            numbers = [(column, found[column]) for column in sweeping.COLUMNS if column in found]
            said = "  ".join(f"{column} {value:.4g}" for column, value in numbers)
        console.print(f"{len(done)} of {len(cells)}  {name}  {said}", soft_wrap=True, highlight=False)

    sweeping.sweep(file, ray, on_cell)
    console.print(f"The table is {cells[0].config.out.parent / sweeping.TABLE}.", soft_wrap=True, highlight=False)
