"""The journal of a run: which process works on it, and how far it is, in `logs/journal.jsonl`.

    {"pid": 4711, "born": 1764430433.1, "host": "laptop", "steps": 400}     a start
    {"step": 37, "loss": 0.214, "seconds": 12.9}                            at most two a second, and the last step
    {"ended": true}                                                         finished, stopped or failed

Whoever watches a run reads it here, from any process: a page, a script, a notebook. A run that was started on the
command line has it too. Steps after the last checkpoint are trained again when a stopped run continues, so the later
line of a step counts.
"""

from __future__ import annotations

import contextlib
import json
import platform
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from atomtune.errors import UserError

FILE = Path("logs", "journal.jsonl")
EVERY = 0.5
"""Seconds between two lines."""


class Journal:
    """Writes the journal of the run in `out`."""

    def __init__(self, out: Path, steps: int) -> None:
        self.file = out / FILE
        self._last = 0.0
        self.file.parent.mkdir(parents=True, exist_ok=True)
        me = psutil.Process()
        self._write({"pid": me.pid, "born": me.create_time(), "host": platform.node(), "steps": steps})

    def step(self, step: int, loss: float, seconds: float, last: bool) -> None:
        """Note that `step` is done, unless another was noted just before."""
        if last or time.monotonic() - self._last >= EVERY:
            self._last = time.monotonic()
            self._write({"step": step, "loss": loss, "seconds": round(seconds, 2)})

    def end(self) -> None:
        """Note that this process no longer works on the run, although it may live on, as a notebook does."""
        self._write({"ended": True})

    def _write(self, line: dict[str, object]) -> None:
        # Nothing of the run depends on a line; what a full or vanished disk means, the next checkpoint says.
        with contextlib.suppress(OSError), self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


@dataclass(frozen=True)
class Progress:
    """How far a run is."""

    state: str
    """"preparing", "training", "stopped" or "finished"."""
    step: int = 0
    steps: int = 0
    losses: list[tuple[int, float]] = field(default_factory=list)
    """(step, loss), in order."""
    seconds_left: int | float | None = None
    """None while it is not known, or not training."""
    process: psutil.Process | None = None
    """The process that works on it."""

    @property
    def running(self) -> bool:
        return self.process is not None

    def curve(self, most: int = 200) -> list[tuple[int, float]]:
        """The losses as `most` points at most: means over so many steps each."""
        size = max(1, -(-len(self.losses) // most))
        groups = [self.losses[first : first + size] for first in range(0, len(self.losses), size)]
        return [(group[-1][0], sum(loss for _, loss in group) / len(group)) for group in groups]

    def __str__(self) -> str:
        """A short sentence for people."""
        if self.state == "training":
            left = "" if self.seconds_left is None else f", about {_spoken(self.seconds_left)} left"
            return f"training: step {self.step} of {self.steps}{left}"
        if self.state == "stopped":
            return f"stopped at step {self.step} of {self.steps}"
        return "preparing" if self.state == "preparing" else f"finished, {self.step} steps"


def read(out: Path) -> Progress | None:
    """The progress of the run in `out`; None if it has no journal, as one of an older atomtune."""
    try:
        text = (out / FILE).read_text(encoding="utf-8")
    except OSError:
        return None
    start: dict[str, object] = {}
    losses: dict[int, float] = {}
    first = last = None
    ended = False
    for line in text.splitlines():
        try:
            entry = json.loads(line)
        except ValueError:  # half a line, of a process that is writing or was killed
            continue
        if "pid" in entry:
            start, first, last, ended = entry, None, None, False
        elif "step" in entry:
            first, last = first or entry, entry
            losses = {step: loss for step, loss in losses.items() if step < entry["step"]}
            losses[entry["step"]] = entry["loss"]
        ended = ended or "ended" in entry
    if not start:
        return None
    steps, step = int(str(start["steps"])), max(losses, default=0)
    process = None if ended else _process(start)
    if process is None:
        finished = (out / "summary.json").is_file() and step >= steps
        return Progress("finished" if finished else "stopped", step, steps, sorted(losses.items()))
    if first is None or last is None:
        return Progress("preparing", step, steps, sorted(losses.items()), process=process)
    done, seconds = last["step"] - first["step"], last["seconds"] - first["seconds"]
    left = (steps - step) * seconds / done if done else None
    return Progress("training", step, steps, sorted(losses.items()), left, process)


def stop(out: Path) -> None:
    """Ask the process that trains the run to stop: SIGTERM, upon which it saves a checkpoint. Raises `UserError` if
    none is."""
    progress = read(out)
    if progress is None or progress.process is None:
        raise UserError(f"{out.name} is not being trained now: there is nothing to stop.")
    progress.process.send_signal(signal.SIGTERM)


def _process(start: dict[str, object]) -> psutil.Process | None:
    """The process of a start, if it still runs: of its number and its birth, since numbers are used again."""
    if start.get("host") != platform.node():
        return None
    return running(start.get("pid"), start.get("born"))


def running(pid: object, born: object) -> psutil.Process | None:
    """The process of this number, if it still runs and began at `born`, in seconds since 1970."""
    try:
        process = psutil.Process(int(str(pid)))
        same = abs(process.create_time() - float(str(born))) < 1
        return process if same and process.status() != psutil.STATUS_ZOMBIE else None
    except (psutil.Error, ValueError):
        return None


def _spoken(seconds: int | float) -> str:
    minutes = seconds / 60
    return f"{seconds:.0f} s" if minutes < 1.5 else f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"
