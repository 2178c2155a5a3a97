"""What the studio's server keeps in memory of each open page: as much after hours as after minutes."""

from __future__ import annotations

import ctypes
import platform
import threading
import time
from typing import Any

import gradio as gr

_MMAP_THRESHOLD, _ARENA_MAX = -3, -8  # as in glibc's malloc.h


class Blocks(gr.Blocks):
    """A page of which a session holds each component once, as long as it is open."""

    async def postprocess_data(self, block_fn: Any, predictions: Any, state: Any) -> list[Any]:
        """Gradio puts a new component, with a new id, in the place of each output that a handler updates or leaves as
        it is, and at the next value adds it under its own id as well: one more with each image. So it keeps the id."""
        found = await super().postprocess_data(block_fn, predictions, state)
        for block in block_fn.outputs if state else ():
            if (now := state.blocks_config.blocks.get(block._id)) is not None:
                now._id = block._id
        return found

    def forget(self, session: str) -> None:
        """Drop what a closed page had: it never comes back, because a page that lost its server is loaded anew."""
        self.state_holder.session_data.pop(session, None)
        self.state_holder.time_last_used.pop(session, None)


def keep_memory_flat() -> None:
    """Let glibc give memory that is free back to the system. Call it before other threads are started.

    By itself it raises the size from which it gives back a block up to 32 MB, and has eight heaps for each core: the
    tensors of a drawing then leave gaps between what is kept. With three users of moji on two cores these gaps had 77
    MB after 143 images, and still grew; with these options 14 MB after 99 images, at a cost of 0.04 s of the 1.2 s of
    20 steps. Gaps between small blocks stay (113 MB after eight minutes), so they are given back every ten seconds.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_MMAP_THRESHOLD, 256 * 1024)
        libc.mallopt(_ARENA_MAX, 2)
        threading.Thread(target=_give_back, args=(libc,), daemon=True).start()


def _give_back(libc: ctypes.CDLL) -> None:
    while True:
        libc.malloc_trim(0)
        time.sleep(10)
