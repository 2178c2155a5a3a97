"""The progress bar of a run: loss, speed, time left, and how many atoms a token uses and how many are alive."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column


class TrainingBar:
    """A rich bar on standard error, so that standard output stays clean for those who pipe it."""

    def __init__(self, steps: int, start: int, disable: bool):
        self.progress = Progress(
            TextColumn("training"),
            BarColumn(bar_width=10),
            MofNCompleteColumn(table_column=Column(no_wrap=True, min_width=7)),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(compact=True),
            console=Console(stderr=True),
            disable=disable,
        )
        self.task = self.progress.add_task("training", total=steps, completed=start, numbers="")
        self.start = start

    def __enter__(self) -> TrainingBar:
        self.progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.progress.stop()

    def update(self, step: int, loss: float, measured: dict[str, Any]) -> None:
        """Show `step` as done, with its numbers."""
        numbers = f"loss {loss:.3f}"
        if speed := self.progress.tasks[0].speed:
            numbers += f" {speed:.1f} steps/s"
        if measured:
            numbers += f" {measured['active_per_token']:.1f} a token {measured['live_atoms']} alive"
        self.progress.update(self.task, completed=step, numbers=numbers)

    def show_stopping(self) -> None:
        """Show that the run will stop after this step."""
        self.progress.update(self.task, numbers="stopping after this step (Ctrl-C again: at once)")
