"""Runs that are stopped by a signal at random moments, and started again, until they are done.

A run is a real `atomtune customize` in a process of its own. Each start is stopped after a random share of the time
that a whole run takes, so a signal may come at any moment: while the base is opened, images are drawn, a step is
computed, or a checkpoint is written. After each one every complete checkpoint must open; at the end weights, optimizer
state and images must be those of a run that was left alone, to the bit.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.utils.tensorboard
from PIL import Image

import atomtune.adapters
import atomtune.cli.customize
import atomtune.training.run  # noqa: F401  all that a run imports, once, before the server forks
from atomtune import cli, manifest
from atomtune.training import checkpoints
from tests.tiny_pixart import save_tiny_pixart

OPTIONS: dict[str, Any] = {
    "class_name": "dog",
    "steps": 60,
    "batch_size": 2,
    "num_atoms": 16,
    "checkpoint_every": 4,
    "sample_every": 20,
    "caption_dropout": 0.3,
    "lr_scheduler": "cosine",
    "prior_preservation": True,
    "num_class_images": 2,
    "preserve": True,
    "floor": 1.0,
}
LIMIT = 300.0
"""Seconds within which a start must end, by itself or after a signal."""


@dataclass
class Counts:
    """What happened in a series of kills."""

    kills: int = 0
    runs: int = 0
    """Runs that were stopped at least once and then ended with the right bits."""
    before_training: int = 0
    """Kills before the first checkpoint of the run."""
    while_writing: int = 0
    """Kills that left something half-written, under a temporary name."""
    exit_codes: dict[int, int] = field(default_factory=dict)
    """The number of starts that ended with each code."""


SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


def measure(folder: Path, kills: int) -> Iterator[dict[str, Any]]:
    """The numbers of so many kills by each signal, as far as they are known, after each signal."""
    killed, found = Killed(folder / "killed", str(save_tiny_pixart(folder / "base"))), {}
    for number in SIGNALS:
        found[number.name] = asdict(killed.kill(number, kills))
        yield found


class Killed:
    """A folder with images, a base and prompts, in which runs are started and stopped."""

    def __init__(self, folder: Path, base: str, **options: Any) -> None:
        self.folder, self.base, self.options = folder, base, OPTIONS | options
        images = folder / "images"
        images.mkdir(parents=True)
        numbers = np.random.default_rng(0)
        for index in range(3):
            pixels = numbers.integers(0, 256, (48, 64, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(images / f"{index}.png")
        (folder / "others.txt").write_text("a red cat\nthe snow\n")
        assert self.start("warm-up").wait() == 0, self.said("warm-up")
        start = time.monotonic()
        assert self.start("whole").wait() == 0, self.said("whole")
        self.seconds = time.monotonic() - start
        """Of a whole run."""

    def start(self, name: str) -> Process:
        """Start or go on with the run `name`."""
        out = self.folder / name / "run"
        options = {"base": self.base, "out": out, "preserve_prompts": self.folder / "others.txt"} | self.options
        flags = [
            f"--{'' if value is not False else 'no-'}{key.replace('_', '-')}" + ("" if value in (True, False) and
            isinstance(value, bool) else f"={value}") for key, value in options.items()
        ]  # fmt: skip
        out.parent.mkdir(exist_ok=True)
        return Process(["customize", str(self.folder / "images"), *flags], out.parent)

    def said(self, name: str) -> str:
        """What the last start of a run printed on stderr."""
        return (self.folder / name / "stderr").read_text(errors="replace")

    def kill(self, number: signal.Signals, kills: int, seed: int = 0) -> Counts:
        """Stop runs by this signal until there were `kills` of them and the last run is done."""
        counts, moments = Counts(), random.Random(f"{number.name} {seed}")
        while counts.kills < kills:
            name = f"{number.name}-{counts.runs}"
            stopped = 0
            while True:
                process = self.start(name)
                process.wait(moments.uniform(0, self.seconds) if counts.kills < kills else LIMIT)
                running = process.exit_code is None
                if running:
                    process.send(number)
                    process.wait(LIMIT)
                code = process.exit_code
                assert code is not None, f"{name} did not end {LIMIT:.0f} s after {number.name}"
                assert "Traceback" not in self.said(name), self.said(name)
                if code == 0:
                    break
                assert running, f"{name} ended by itself with {code}: {self.said(name)}"
                assert code in (-number, 130), f"{name} ended with {code} after {number.name}: {self.said(name)}"
                stopped, counts.kills = stopped + 1, counts.kills + 1
                counts.exit_codes[code] = counts.exit_codes.get(code, 0) + 1
                run = self.folder / name / "run"
                found = checkpoints.checkpoints(run / "checkpoints")
                for checkpoint in found:
                    checkpoints.load_state(checkpoint)
                counts.before_training += not found
                counts.while_writing += bool([*self.folder.joinpath(name).rglob(".atomtune-*")])
            if stopped:
                counts.runs += 1
                self.compare(name)
            shutil.rmtree(self.folder / name)
        return counts

    def compare(self, name: str) -> None:
        """The run must have ended with the bits of the one that was left alone, and left nothing beside it."""
        whole, other = (outcome(self.folder / each / "run") for each in ("whole", name))
        assert whole.keys() == other.keys(), f"{name} has other files: {whole.keys() ^ other.keys()}"
        differ = [file for file in whole if whole[file] != other[file]]
        assert not differ, f"{name} has other bits in {differ}"
        run = self.folder / name / "run"
        assert not [*self.folder.joinpath(name).rglob(".atomtune-*")], f"{name} left temporary files"
        files = {str(file.relative_to(run)) for file in run.rglob("*") if file.is_file()} - {manifest.NAME}
        # A tracker chooses the names of its files, so they are listed after it has opened them.
        files = {file for file in files if not file.startswith("logs/customize/")}
        assert files <= manifest.written(run), f"{name} wrote {files - manifest.written(run)} and does not list it"


def outcome(out: Path) -> dict[str, bytes]:
    """Everything of a run that must be the same to the bit: weights, the last state of the optimizer, and images.
    (Which checkpoints are left beside the last one depends on where the run was stopped.)"""
    last = checkpoints.newest_checkpoint(out / "checkpoints")
    patterns = ("adapter/*.safetensors", "samples/*", "class_images/*", "samples.png")
    files = [file for pattern in patterns for file in out.glob(pattern)] + [*(last or out).rglob("*.safetensors")]
    return {str(file.relative_to(out)): file.read_bytes() for file in files}


class Process:
    """`atomtune` in a process of its own, from a server that has imported the libraries once."""

    def __init__(self, arguments: Sequence[str], folder: Path) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        self._process = context.Process(target=_atomtune, args=(list(arguments), str(folder)))
        self._process.start()

    @property
    def exit_code(self) -> int | None:
        """None while it runs; -N after signal N."""
        return self._process.exitcode

    def wait(self, seconds: float = LIMIT) -> int | None:
        """Wait for its end, so long at most."""
        self._process.join(seconds)
        return self.exit_code

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            os.kill(self._process.pid or 0, number)


def _atomtune(arguments: list[str], folder: str) -> None:
    """The command line, with the signals of a terminal, and with its own cache and stderr in `folder`."""
    os.environ["ATOMTUNE_CACHE"] = f"{folder}/cache"
    sys.stderr.flush()
    os.dup2(os.open(f"{folder}/stderr", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    torch.set_num_threads(1)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        # Python's own handler, which is off in what a shell starts in the background. From here on main() answers.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        cli.main(arguments)
    except KeyboardInterrupt:  # between the two lines
        sys.exit(130)
