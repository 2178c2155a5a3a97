"""Jobs: command lines of atomtune, run one after the other, each in a process of its own, by a queue that is a folder.

    queue = Queue("runs/.studio/jobs")
    job = queue.add(["customize", "photos/teapot", "--class-name", "teapot", "--out", "runs/teapot"], "runs/teapot")
    queue.advance()                         starts the next job if none runs; call it now and then

    0007-teapot.queued.json                 waits: {"words": [...], "out": "runs/teapot", ...}
    0007-teapot.started.json                runs or has ended, with the process and, when it is known, its exit code
    0007-teapot.log                         what it printed

A job does not end with the program that started it, and whoever opens the folder later sees it. A queue is advanced by
any number of programs: a job is started by the one that renames its file.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from atomtune.errors import UserError
from atomtune.files import expanded, write_text
from atomtune.shell import command_line
from atomtune.training.journal import FILE, Progress, read, running, stop

TAIL = 4000
"""Bytes of what a job printed that are read."""
BARS = {"TTY_COMPATIBLE": "1", "TTY_INTERACTIVE": "1", "COLUMNS": "64"}
"""With these rich draws its progress bars into a log, too. The progress of training is read from its journal."""
ENDED = ("finished", "failed", "stopped", "ended")
_WAITED_FOR: set[Path] = set()
"""Files of the jobs whose exit code a thread of this program will write."""


@dataclass(frozen=True)
class Job:
    """One job, as its files say."""

    number: int
    words: list[str]
    """The command line, without the name of the program."""
    out: str
    """Where its results are."""
    state: str
    """"queued", "running", "finished", "failed", "stopped", or "ended": its exit code is not known, because nobody
    waited for it."""
    message: str
    """The last line that it printed."""
    file: Path
    process: psutil.Process | None = None

    @property
    def command(self) -> str:
        """The command line, for people to type."""
        return command_line(*self.words)

    def __str__(self) -> str:
        said = f": {self.message}" if self.message and self.state != "queued" else ""
        return f"{self.words[0]} {Path(self.out).name}: {self.state}{said}"


class Queue:
    """The jobs in a folder, which is made with the first job."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = expanded(folder)
        self._lock = threading.Lock()

    def jobs(self) -> list[Job]:
        """All jobs, the oldest first."""
        files = sorted(self.folder.glob("[0-9]*-*.*.json"))
        return [job for file in files if (job := _read(file)) is not None]

    def add(self, words: Sequence[object], out: str | Path) -> Job:
        """Queue a command line. Raises `UserError` if a job that waits or runs has the same `out`; a run that has ended
        may go on, though its process has not."""
        for job in self.jobs():
            if job.out == str(out) and job.state not in ENDED and not _is_over(job, read(Path(out))):
                raise UserError(f"{Path(out).name} is {job.state} already: wait for it, or stop it.")
        with self._lock:
            number = 1 + max((job.number for job in self.jobs()), default=0)
            stem = re.sub(r"[^\w-]", "-", Path(out).name)
            file = self.folder / f"{number:04d}-{stem}.queued.json"
            write_text(file, json.dumps({"words": list(map(str, words)), "out": str(out)}))
        found = _read(file)
        assert found is not None
        return found

    def advance(self) -> None:
        """Start the oldest job that waits, unless one runs."""
        with self._lock:
            jobs = self.jobs()
            waiting = [job for job in jobs if job.state == "queued"]
            if waiting and not any(job.state == "running" for job in jobs):
                self._start(waiting[0])

    def stop(self, number: int) -> None:
        """Take a job that waits off the queue, or ask one that runs to stop, by SIGTERM. Raises `UserError` if it does
        neither."""
        job = next((job for job in self.jobs() if job.number == number), None)
        if job is None or job.state in ENDED:
            raise UserError(f"job {number} neither waits nor runs: there is nothing to stop.")
        if job.state == "queued":
            job.file.unlink(missing_ok=True)
        elif job.process is not None:
            job.process.terminate()

    def stop_run(self, out: Path) -> None:
        """Stop the job that writes `out`, or the run there, which somebody else started. Raises `UserError`."""
        for job in self.jobs():
            if Path(job.out).name == out.name and job.state not in ENDED:
                return self.stop(job.number)
        return stop(out)

    def _start(self, job: Job) -> None:
        file = job.file.with_name(job.file.name.replace(".queued.", ".started."))
        try:
            job.file.rename(file)
        except FileNotFoundError:  # another program was quicker
            return
        with _log(file).open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "atomtune", *job.words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C ends the program that starts jobs, and not the jobs
                env=os.environ | (BARS if job.words[0] != "customize" else {}),
            )
        entry = json.loads(file.read_text(encoding="utf-8"))
        entry |= {"pid": process.pid, "born": psutil.Process(process.pid).create_time()}
        _WAITED_FOR.add(file)
        write_text(file, json.dumps(entry))
        threading.Thread(target=_wait, args=(process, file, entry), daemon=True).start()


def overview(queue: Queue, runs: Mapping[str, Path]) -> list[tuple[str, str, str]]:
    """(name, command, state) of the latest job of each name, and of each of these runs, whoever started it: first what
    waits or runs."""
    latest = {Path(job.out).name: job for job in queue.jobs()}
    rows = {}
    for name, job in sorted(latest.items(), key=lambda item: (item[1].state in ENDED, -item[1].number)):
        said = job.message if job.state not in ("queued", "finished") else ""
        rows[name] = (name, job.words[0], f"{job.state}: {said}" if said else job.state)
    for name, path in runs.items():
        job, progress = latest.get(name), read(path)
        says_more = job is None or job.state not in ("queued", "running", "failed") or _is_over(job, progress)
        if progress is not None and (progress.running or says_more):
            rows[name] = (name, job.words[0] if job else "customize", str(progress))
        rows.setdefault(name, (name, "", "an adapter"))
    return list(rows.values())


def _is_over(job: Job, progress: Progress | None) -> bool:
    """Whether the run of a job that trains, whose progress is given, has ended, and its process is about to."""
    if job.words[0] != "customize" or progress is None or progress.running or job.process is None:
        return False
    try:
        return (Path(job.out) / FILE).stat().st_mtime > job.process.create_time()  # else that of an earlier process
    except (OSError, psutil.Error):
        return False


def _wait(process: subprocess.Popen[bytes], file: Path, entry: dict[str, Any]) -> None:
    code = process.wait()
    if file.exists():  # else the folder was removed meanwhile
        write_text(file, json.dumps(entry | {"code": code}))
    _WAITED_FOR.discard(file)


def _log(file: Path) -> Path:
    return file.with_name(file.name.split(".")[0] + ".log")


def _read(file: Path) -> Job | None:
    """The job of a file; None if the file has just been renamed, or is no job."""
    waited_for = file in _WAITED_FOR  # asked first: the code may be written meanwhile
    try:
        entry = json.loads(file.read_text(encoding="utf-8"))
        words, out = [str(word) for word in entry["words"]], str(entry["out"])
        number = int(file.name.split("-")[0])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if file.name.endswith(".queued.json"):
        return Job(number, words, out, "queued", "", file)
    process = running(entry.get("pid"), entry.get("born"))
    states = {None: "ended", 0: "finished", 130: "stopped", -15: "stopped"}
    state = (
        "running"
        if process is not None or (waited_for and "code" not in entry)
        else states.get(entry.get("code"), "failed")
    )
    return Job(number, words, out, state, _last_line(_log(file)), file, process)


def _last_line(log: Path) -> str:
    """The last line that a job printed, without the colours of a terminal."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - TAIL))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    lines = re.sub(r"\x1b(\[[0-9;?]*[A-Za-z]?)?", "", text).replace("\r", "\n").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "").removeprefix("atomtune: ")
