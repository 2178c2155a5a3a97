"""The page: one tab for each thing to do."""

from __future__ import annotations

import gradio as gr

from atomtune.studio import look, steer
from atomtune.studio.drawing import Easel
from atomtune.studio.workspace import Workspace

SANS = ["system-ui", "Segoe UI", "Helvetica Neue", "Arial", "sans-serif"]
MONO = ["ui-monospace", "Consolas", "Menlo", "monospace"]
STYLE = """
.gradio-container { max-width: 1400px !important; margin: 0 auto; }
.status p, .about p { margin: 4px 2px; min-height: 1.5em; font-size: 14px; }
.status .wrong { border-left: 4px solid #ca0020; padding-left: 8px; font-weight: 600; }
footer { display: none !important; }
"""


def theme() -> gr.themes.Base:
    """With the fonts of the computer: nothing is fetched."""
    return gr.themes.Default(font=SANS, font_mono=MONO, primary_hue="teal", secondary_hue="teal")


def page(easel: Easel, workspace: Workspace) -> gr.Blocks:
    """All tabs. Events of the page are private: there is no API."""
    with gr.Blocks(title="atomtune studio", analytics_enabled=False, delete_cache=(3600, 3600)) as blocks:
        with gr.Tabs():
            with gr.Tab("Look", id="look"):
                look.tab(easel, workspace, lambda run: "")
            with gr.Tab("Steer", id="steer"):
                steer.tab(easel, workspace, lambda *a: "")
        blocks.unload(lambda request: easel.leave(str(request.session_hash)))
    return blocks
