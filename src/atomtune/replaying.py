"""`Replay`: draw one prompt and seed under many settings of the dials, and compute only what changed.

    replay = Replay(pipe)
    replay.draw("a sks teapot", seed=1)                                     the base: every step is computed
    replay.draw("a sks teapot", seed=1, adapter="default")                  every step, with the adapter
    replay.draw("a sks teapot", seed=1, adapter="default", preset={"schedule": {"500": 1, "499": 0}})
                                                                            half of the steps were computed before

A sampler's state at step i follows from the noise and from what the denoiser answered at the steps before i. So the
answer ε_i is a function of (prompt, seed, number of steps, settings at the steps up to i), and is kept under the digest
of exactly these:

    key_i = digest(key_{i-1}, what acts at step i)

Where an adapter's strength is 0 at a step, the base acts there, whatever its dials are (attention atoms of strength 0
would round otherwise: their one attention call is wider). The sampler runs as always, and images are the same to the
bit as without the memory.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from atomtune.adapters import adapted_layers
from atomtune.bases import denoiser
from atomtune.sampling import generate
from atomtune.steering import board
from atomtune.tracing import Trace, bare_model, timesteps, trace

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

BYTES = 32_000_000
"""Of kept answers: those of 200 images of moji, of which each takes 160 kB."""


class Replay:
    """A pipeline, the answers that its denoiser gave, and the adapters that are loaded on it.

    Args:
        pipe: The pipeline, with or without adapters.
        largest: Bytes of answers that are kept, the latest ones.
    """

    def __init__(self, pipe: DiffusionPipeline, largest: int = BYTES) -> None:
        self.pipe, self.largest = pipe, largest
        self._answers: OrderedDict[str, Any] = OrderedDict()
        self.kept_bytes = 0
        """Bytes of the answers that are kept now."""
        self.computed = 0
        """Runs of the denoiser so far."""
        self.replayed = 0
        """Runs that were not needed, because the answer was known."""

    def draw(
        self,
        prompt: str,
        seed: int = 0,
        steps: int | None = None,
        adapter: str | None = None,
        preset: Mapping[str, Any] | None = None,
        on_step: Callable[[], object] = lambda: None,
    ) -> Image.Image:
        """The image. While it is drawn the dials are set to `preset`, by default as trained; then they are as before.

        `adapter` is the name of a loaded adapter, None for the base. `on_step` is called before each run of the
        denoiser, and what it raises ends the drawing. If other weights are loaded under a name, `forget` first. Raises
        `UserError`.
        """
        with self._acting(adapter, preset or {}):
            return self._draw(prompt, seed, steps, adapter, preset or {}, on_step)

    def trace(
        self,
        prompt: str,
        seed: int = 0,
        steps: int | None = None,
        adapter: str = "default",
        preset: Mapping[str, Any] | None = None,
        on_step: Callable[[], object] = lambda: None,
    ) -> tuple[Image.Image, Trace]:
        """The image, and every code of its atoms (see `trace`): nothing is replayed, because atoms must run."""
        with self._acting(adapter, preset or {}), trace(self.pipe, adapter, codes=True) as seen:
            image = self._draw(prompt, seed, steps, adapter, preset or {}, on_step, keep=False)
        return image, seen

    def forget(self) -> None:
        """Forget all answers."""
        self._answers.clear()
        self.kept_bytes = 0

    @contextmanager
    def _acting(self, adapter: str | None, preset: Mapping[str, Any]) -> Iterator[None]:
        """Only this adapter acts in the block, with a preset, or the base alone. Afterwards the dials are as before."""
        model = denoiser(self.pipe)
        if adapter is None:
            with model.disable_adapter() if hasattr(model, "disable_adapter") else nullcontext():
                yield
            return
        model.set_adapter(adapter, inference_mode=True)
        if not preset and not adapted_layers(model, adapter):  # of another method: no dials
            yield
            return
        atoms = board(model, adapter)
        before = atoms.preset()
        atoms.apply(preset)
        try:
            yield
        finally:
            atoms.apply(before)

    def _draw(
        self,
        prompt: str,
        seed: int,
        steps: int | None,
        adapter: str | None,
        preset: Mapping[str, Any],
        on_step: Callable[[], object],
        keep: bool = True,
    ) -> Image.Image:
        model = bare_model(self.pipe)
        forward = model.forward
        dials = {name: value for name, value in preset.items() if name != "schedule"}
        schedule = {float(t): float(strength) for t, strength in sorted(preset.get("schedule", {}).items(), key=_time)}
        key = _digest([prompt, seed, steps])

        @functools.wraps(forward)
        def answer(*args: Any, **kwargs: Any) -> Any:
            nonlocal key
            on_step()
            time, strength = timesteps(model, args, kwargs), 1.0
            if schedule and time is not None:
                strength = float(np.interp(float(time[0]), list(schedule), list(schedule.values())))
            acts = [adapter, dials, strength] if adapter is not None and strength else None
            key = _digest([key, acts])
            if keep and key in self._answers:
                self.replayed += 1
                self._answers.move_to_end(key)
                return self._answers[key]
            self.computed += 1
            with nullcontext() if acts or adapter is None else denoiser(self.pipe).disable_adapter():
                found = forward(*args, **kwargs)
            if keep:
                self._keep(key, found)
            return found

        model.forward = answer
        try:
            (drawing,) = generate(self.pipe, prompt, seed=seed, steps=steps)
        finally:
            del model.forward
        return drawing.image.convert("RGB")

    def _keep(self, key: str, found: Any) -> None:
        self._answers[key] = found
        self.kept_bytes += found[0].nbytes
        while self.kept_bytes > self.largest:
            self.kept_bytes -= self._answers.popitem(last=False)[1][0].nbytes


def _digest(settings: Any) -> str:
    """Of all that an answer follows from: long enough that two never have the same."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def _time(point: tuple[Any, Any]) -> float:
    return float(point[0])
