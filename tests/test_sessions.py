"""What the server keeps of a page does not grow with its use, and is gone when the page is closed."""

import asyncio
import ctypes
import platform
from typing import Any

import gradio as gr
import psutil
import pytest
from gradio.state_holder import SessionState, StateHolder

from atomtune import sessions
from atomtune.sessions import Blocks

# As on a server, pages are built inside an event loop: where there is none, gradio opens one that it never closes.


def page(kind: Any) -> Any:
    with kind(analytics_enabled=False) as blocks:
        first, second, turn = gr.Textbox(label="First"), gr.Textbox(label="Second"), gr.State(0)
        gr.Button().click(lambda: None, None, [first, second, turn])
    return blocks


async def use(blocks: Any, session: SessionState) -> list:
    """Five times, what a handler does that yields values for some of its outputs, and then for others."""
    (fn,) = blocks.fns.values()
    first, second, state = fn.outputs
    answer = []
    for turn in range(5):
        await blocks.postprocess_data(fn, {first: gr.Textbox(label=f"Turn {turn}"), state: turn}, session)
        answer = await blocks.postprocess_data(fn, {first: f"{turn}", second: f"{turn}"}, session)
    return answer


def test_a_session_has_each_component_once():
    async def check() -> None:
        blocks = page(Blocks)
        first, _, turn = next(iter(blocks.fns.values())).outputs
        session = SessionState(blocks)
        assert (await use(blocks, session))[:2] == ["4", "4"]
        assert set(session.blocks_config.blocks) == set(session.config_values) == set(blocks.blocks)
        assert session[first._id].label == "Turn 4" and session[turn._id] == 4
        assert blocks.blocks[first._id].label == "First"  # that of other sessions

    asyncio.run(check())


def test_gradio_alone_keeps_one_more_with_each_update():
    """As soon as this fails, `Blocks.postprocess_data` can go."""

    async def check() -> None:
        blocks = page(gr.Blocks)
        session = SessionState(blocks)
        await use(blocks, session)
        assert len(session.blocks_config.blocks) >= len(blocks.blocks) + 5

    asyncio.run(check())


def test_a_closed_page_is_forgotten():
    async def check() -> None:
        blocks, holder = page(Blocks), StateHolder()
        holder.set_blocks(blocks)
        await use(blocks, holder["closed"])
        await use(blocks, holder["open"])
        blocks.forget("closed")
        blocks.forget("never used")
        assert list(holder.session_data) == list(holder.time_last_used) == ["open"]

    asyncio.run(check())


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other libraries give back free memory in their own way")
def test_free_memory_between_small_blocks_is_given_back(monkeypatch):
    """Of 100 MB in blocks of 64 KiB, nine of ten are free, between those that are not."""
    libc, process = ctypes.CDLL(None), psutil.Process()
    libc.malloc.restype = ctypes.c_void_p
    blocks = [ctypes.c_void_p(libc.malloc(64 * 1024)) for _ in range(1600)]
    for block in blocks:
        ctypes.memset(block, 1, 64 * 1024)
    for number, block in enumerate(blocks):
        if number % 10:
            libc.free(block)
    before = process.memory_info().rss

    def ends(_seconds: float) -> None:
        raise StopIteration

    monkeypatch.setattr(sessions.time, "sleep", ends)
    with pytest.raises(StopIteration):
        sessions._give_back(libc)
    assert before - process.memory_info().rss > 50e6
    for block in blocks[::10]:
        libc.free(block)
