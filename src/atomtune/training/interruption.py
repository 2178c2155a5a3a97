"""Ctrl-C and SIGTERM while training: a request that the loop follows between two steps, not an exception anywhere."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)
REPEAT = 1.0
"""Seconds within which a second signal counts as the first one: launchers repeat the signal that the terminal has
sent."""


class Interruption:
    """Inside the block, the first signal sets `asked` and calls `on_first_signal`; a later signal raises
    `KeyboardInterrupt`.

    Python lets only the main thread handle signals; in other threads nothing changes. A signal that is ignored already
    (after `nohup` or `&`) stays ignored. The earlier handlers are restored at the end.
    """

    def __init__(self, on_first_signal: Callable[[], None]):
        self.on_first_signal = on_first_signal
        self.asked = False
        self._since = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            # None is a handler that was not set from Python, and could not be restored
            handled = [number for number in SIGNALS if signal.getsignal(number) not in (signal.SIG_IGN, None)]
            self._before = {number: signal.signal(number, self._handle) for number in handled}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: object) -> None:
        now = time.monotonic()
        if not self.asked:
            self.asked, self._since = True, now
            self.on_first_signal()
        elif now - self._since > REPEAT:
            raise KeyboardInterrupt
