"""One base with several adapters, with which one user at a time draws.

Settings are data and come with every call: they are applied, the image is drawn, and the dials are as before, all under
one lock. So no user sees what another one has set.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from atomtune.analysis.heatmaps import acting_words, overlay
from atomtune.analysis.influence import Call, influence_sizes, keeping_calls, some_of
from atomtune.analysis.overlap import Overlap, overlap
from atomtune.analysis.report import read_names
from atomtune.bases import denoiser, load_base
from atomtune.dialling import Settings, Trained
from atomtune.errors import UserError
from atomtune.recording import AtomTrace
from atomtune.replaying import Replay
from atomtune.sampling import digest
from atomtune.showing import AtomMap
from atomtune.steering import AtomBoard, board
from atomtune.storage.folders import load_adapter
from atomtune.storage.merging import merged
from atomtune.storage.metadata import WEIGHTS_FILE
from atomtune.storage.reading import adapter_info
from atomtune.tracing import Trace

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

MOST = 4
"""Adapters that are loaded at once."""


class Stopped(Exception):
    """The user stopped the drawing, or asked for another."""


@dataclass(eq=False)
class Seen:
    """One image of a run, and what its atoms did in it."""

    check: Callable[[], object]
    """Raises `Stopped` if the user has asked for something else since."""
    run: Path
    asked: tuple[str, int, int]
    """Prompt, seed and steps."""
    image: Image.Image
    trace: Trace
    map: AtomMap
    """How much each atom matters for the image (`influence_sizes`)."""
    strongest: dict[str, float]
    """The same of those that matter most, by address, falling."""
    names: dict[str, tuple[str, str]]
    """By address, name and evidence, if the run was inspected."""
    drawn_at: float = field(default_factory=time.time)

    def where(self, atom: AtomTrace, pipe: DiffusionPipeline) -> tuple[Image.Image | None, str]:
        """The places of the image at which an atom acts, and in words how much, or at which words of the prompt."""
        acts = f"acts at {atom.firing_rate:.1%} of the places and words"
        try:
            return overlay(self.image, atom.maps(magnitude=True)[0]), acts
        except UserError:  # its tokens are not patches of the image
            words = acting_words(atom, pipe, self.asked[0])
            return None, f"{acts}, of words alone: " + (", ".join(f"{w} ({s:.2g})" for w, s in words) or "none here")


class Easel:
    """A base, and the adapters that were asked for last."""

    def __init__(self, base: str) -> None:
        self.base = base
        self.lock = threading.RLock()
        self.replay = Replay(load_base(base, device="auto"))
        self._loaded: OrderedDict[str, str] = OrderedDict()  # the file of the weights: the adapter's name in the model
        self._trained: dict[str, Trained] = {}
        self._turns: dict[str, float] = {}
        self._turning = threading.Lock()

    @property
    def model(self) -> Any:
        """The base's denoiser."""
        return denoiser(self.replay.pipe)

    def turn(self, user: str, asked: float | None = None) -> Callable[[], None]:
        """A new drawing of this user, which ends an older one: call the result before each step.

        `asked` is when the user asked for it, by the user's own clock in milliseconds: what was asked for earlier may
        come later, and ends at once. Without it, this is the newest.
        """
        with self._turning:
            newest = self._turns.get(user, 0.0)
            own = newest + 1e-3 if asked is None else asked
            self._turns[user] = max(newest, own)

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

    def turned(self, run: Path, gains: dict[str, float], address: str, gain: float) -> dict[str, float]:
        """The gains of a run, by address, with another one; those of 1 are left out. Raises `UserError` if the run has
        no such layer or atom."""
        with self.lock:
            self.board(run)[address]
        return {key: each for key, each in {**gains, address: gain}.items() if each != 1}

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

    def look(self, prompt: str, seed: int, steps: int, run: Path, strongest: int, check: Callable[[], object]) -> Seen:
        """The image of a run as it was trained, and what its atoms did in it."""
        calls: list[Call] = []
        with self.lock:
            check()
            adapter = self._adapter(run)
            with keeping_calls(self.replay.pipe, calls):
                image, traced = self.replay.trace(prompt, seed, steps, adapter, on_step=check)
            checked = (call for call in some_of(calls) if check() is None)
            sizes = influence_sizes(self.replay.pipe, checked, adapter=adapter)
        check()
        whole = AtomMap.of([layer.dictionary for layer in traced.layers], sizes)
        first = {
            each.address: float(sizes[traced.layers.index(each.layer)][each.index])
            for each in traced.strongest(strongest, sizes)
        }
        return Seen(check, run, (prompt, seed, steps), image, traced, whole, first, read_names(run))

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
                self.model.delete_adapter(oldest)
            load_adapter(self.replay.pipe, run, f"a{key}")
            self._loaded[key] = f"a{key}"
        self._loaded.move_to_end(key)
        return self._loaded[key]
