"""One base with several adapters, with which one user at a time draws.

Settings are data and come with every call: they are applied, the image is drawn, and the dials are as before, all under
one lock. So no user sees what another one has set.
"""

from __future__ import annotations

import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from atomtune.analysis.influence import Outputs, influence_sizes, keeping_calls, some_of
from atomtune.analysis.overlap import Overlap, overlap
from atomtune.bases import denoiser, load_base
from atomtune.dialling import Settings, Trained
from atomtune.errors import UserError
from atomtune.replaying import Replay
from atomtune.sampling import digest
from atomtune.steering import AtomBoard, board
from atomtune.storage.folders import load_adapter
from atomtune.storage.merging import merged
from atomtune.storage.metadata import WEIGHTS_FILE
from atomtune.storage.reading import adapter_info
from atomtune.tracing import Trace

MOST = 4
"""Adapters that are loaded at once."""


class Stopped(Exception):
    """The user stopped the drawing, or asked for another."""


class Easel:
    """A base, and the adapters that were asked for last."""

    def __init__(self, base: str) -> None:
        self.base = base
        self.lock = threading.RLock()
        self.replay = Replay(load_base(base, device="auto"))
        self._loaded: OrderedDict[str, str] = OrderedDict()  # the file of the weights: the adapter's name in the model
        self._trained: dict[str, Trained] = {}
        self._turns: dict[str, int] = {}

    def turn(self, user: str) -> Callable[[], None]:
        """A new drawing of this user, which ends an older one: call the result before each step."""
        own = self._turns[user] = self._turns.get(user, 0) + 1

        def check() -> None:
            if self._turns.get(user) != own:
                raise Stopped

        return check

    def stop(self, user: str) -> None:
        """End the drawing of this user, before its next step."""
        self.turn(user)

    def leave(self, user: str) -> None:
        """Forget a user who has left the page."""
        self._turns.pop(user, None)

    def board(self, run: Path) -> AtomBoard:
        """The board of a run. Only inside the lock, and left as it was."""
        return board(self.replay.pipe, self._adapter(run))

    def trained(self, run: Path) -> Trained:
        """The dials of a run as it was trained. Raises `UserError`."""
        with self.lock:
            adapter = self._adapter(run)
            if adapter not in self._trained:
                self._trained[adapter] = Trained.of(board(self.replay.pipe, adapter))
            return self._trained[adapter]

    def preset(self, run: Path, settings: Settings) -> dict[str, Any]:
        with self.lock:
            return settings.preset(self.board(run))

    def draw(
        self,
        prompt: str,
        seed: int,
        steps: int,
        run: Path | None = None,
        settings: Settings | None = None,
        check: Callable[[], object] = lambda: None,
    ) -> Image.Image:
        """The image of the base, or of a run with these settings. Raises `UserError` and `Stopped`."""
        with self.lock:
            check()
            if run is None:
                return self.replay.draw(prompt, seed, steps, on_step=check)
            adapter = self._adapter(run)
            preset = (settings or Settings()).preset(board(self.replay.pipe, adapter))
            return self.replay.draw(prompt, seed, steps, adapter, preset, check)

    def trace(
        self, prompt: str, seed: int, steps: int, run: Path, check: Callable[[], object]
    ) -> tuple[Image.Image, Trace, list[Tensor]]:
        """The image of a run as it was trained, every code of its atoms, and how much each atom matters for the image
        (`influence_sizes`)."""
        calls: list[Outputs] = []
        with self.lock:
            check()
            adapter = self._adapter(run)
            with keeping_calls(self.replay.pipe, calls):
                image, seen = self.replay.trace(prompt, seed, steps, adapter, on_step=check)
            return image, seen, influence_sizes(self.replay.pipe, some_of(calls), adapter=adapter)

    @contextmanager
    def merged(
        self, runs: Sequence[Path], combination_type: str, weights: Sequence[float], folder: Path
    ) -> Iterator[Path]:
        """A merged adapter to draw with, in a temporary folder inside `folder`. Raises `UserError`."""
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            yield merged(runs, combination_type, weights).save(Path(temporary) / "merged")

    def overlap(self, first: Path, other: Path, check: Callable[[], object]) -> Overlap:
        """How far two adapters overlap, on a prompt of each. Raises `UserError`."""
        prompts = [adapter_info(run).prompts(1) for run in (first, other)]
        if not all(prompts):
            raise UserError(
                "an adapter does not name the words that it was trained with: type `atomtune merge --report`."
            )
        with self.lock:
            check()
            names = self._adapter(first), self._adapter(other)
            return overlap(self.replay.pipe, (prompts[0], prompts[1]), names, steps=10)

    def _adapter(self, run: Path) -> str:
        """The name of a run's adapter in the model, which is another one when its weights have changed."""
        info = adapter_info(run)
        info.refuse_other_than("ATOMS", "the dials are those of atoms, so see it under Compare")
        file = (info.folder / WEIGHTS_FILE).resolve()
        key = digest([str(file), file.stat().st_mtime_ns, file.stat().st_size])
        if key not in self._loaded:
            while len(self._loaded) >= MOST:
                _, oldest = self._loaded.popitem(last=False)
                self._trained.pop(oldest, None)
                denoiser(self.replay.pipe).delete_adapter(oldest)
            load_adapter(self.replay.pipe, run, f"a{key}")
            self._loaded[key] = f"a{key}"
        self._loaded.move_to_end(key)
        return self._loaded[key]
