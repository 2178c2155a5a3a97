"""The page: one tab for each thing to do."""

from __future__ import annotations

from typing import Any

import gradio as gr

from atomtune.easel import Easel
from atomtune.jobs import Queue
from atomtune.sessions import Blocks
from atomtune.studio import compare, edit, learn, look, merge, parts, steer
from atomtune.workspace import Workspace

STYLE = """
.gradio-container, .gradio-container > .main { width: 100% !important; max-width: 1440px !important; }
.gradio-container { margin: 0 auto !important; }
.status p, .note p { margin: 4px 2px; min-height: 1.5em; font-size: 14px; }
.status .wrong { border-left: 4px solid #ca0020; padding-left: 8px; font-weight: 600; }
.grid-wrap { overflow-y: auto !important; max-height: none !important; min-height: 0 !important; }
.gallery .grid-container { grid-template: auto / repeat(auto-fill, minmax(170px, 1fr)) !important; }
.gallery .thumbnail-item { aspect-ratio: auto; height: auto; }
.gallery .caption-label { position: static; display: block; max-width: 100%; white-space: normal; }
footer { display: none !important; } .dark { color-scheme: dark; }
"""
ABOUT = """**atomtune studio.** An adapter is a list of *atoms*, small changes that each act where they are needed in an
image: learn a subject from a few images, look at what its atoms do, and turn them."""
KEYS = """() => window.addEventListener("keydown", event => {
  if (event.key === "Tab" && event.target.role === "combobox")
    event.target.dispatchEvent(new KeyboardEvent("keydown", {key: "Escape", bubbles: true})); }, true)"""
"""Gradio's lists stay open when Tab leaves them; Escape closes them."""


def theme() -> gr.themes.Base:
    """With the fonts of the computer, so that nothing is fetched, and colours that can be read."""
    fonts: dict[str, Any] = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    return gr.themes.Default(**fonts, primary_hue="teal", secondary_hue="teal").set(
        body_text_color_subdued="*neutral_600", body_text_color_subdued_dark="*neutral_300",
        block_info_text_color="*neutral_600", block_info_text_color_dark="*neutral_300", button_large_text_size="14px",
        button_primary_background_fill="*primary_700", button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700", button_primary_background_fill_hover_dark="*primary_800",
    )  # fmt: skip


def page(easel: Easel, workspace: Workspace, queue: Queue) -> Blocks:
    """All tabs."""
    options: dict[str, Any] = {"analytics_enabled": False, "fill_width": True, "delete_cache": (600, 3600)}
    with Blocks(title="atomtune studio", **options) as blocks:
        gr.Markdown(ABOUT)
        with gr.Tabs():
            with gr.Tab("Look"):
                lists = look.tab(easel, workspace, queue)
            with gr.Tab("Steer"):
                opening = steer.tab(easel, workspace, queue)
                lists[opening[1]] = workspace.adapters
            with gr.Tab("Learn"):
                learn.tab(easel.base, workspace, queue)
            with gr.Tab("Edit"):
                lists |= edit.tab(easel.base, workspace, queue)
            with gr.Tab("Merge"):
                lists |= merge.tab(easel, workspace, queue)
            with gr.Tab("Compare"):
                lists |= compare.tab(easel.base, workspace, queue)

        def left(request: gr.Request) -> None:
            easel.leave(str(request.session_hash))
            blocks.forget(str(request.session_hash))

        parts.renewing(lists)
        blocks.load(*opening, **parts.QUIET)
        blocks.unload(left)
    return blocks
