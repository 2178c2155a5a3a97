"""Ctrl-C and SIGTERM while training: a wish that the loop grants between two steps, not an exception anywhere."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)
REPEAT = 1.0
"""Seconds within which a second signal is the first one again: launchers pass on what the terminal has sent to all."""


class Interruption:
    """While this is open, the first signal sets `asked` and calls `on_first_signal`; a later one raises `KeyboardInterrupt`.

    Python lets only the main thread handle signals; in any other nothing changes. A signal that whoever started the
    process has switched off (as `nohup` and `&` do) stays off. The handlers from before come back at the end.
    """

    def __init__(self, on_first_signal: Callable[[], None]):
        self.on_first_signal = on_first_signal
        self.asked = False
        self._since = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            # None is a handler that was not set from Python, and could not be given back
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
