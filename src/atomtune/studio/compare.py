"""Compare: base, LoRA and atoms on the same prompts and seeds, in images and numbers."""

from __future__ import annotations

from typing import Any

import gradio as gr

from atomtune.comparing import NO_IMAGES, read_comparison
from atomtune.errors import UserError
from atomtune.jobs import Queue
from atomtune.metrics.scores import table
from atomtune.studio import parts
from atomtune.studio.parts import Shown, said, slider
from atomtune.workspace import Workspace


def tab(base: str, workspace: Workspace, queue: Queue) -> parts.Lists:
    """Build the tab. Returns its lists."""
    with gr.Row():
        with gr.Column(min_width=300):
            chosen = gr.Dropdown(
                workspace.adapters(), label="Adapters, of any method", multiselect=True, max_choices=4,
                info="The base is always beside them",
            )  # fmt: skip
            prompts = gr.Textbox("", label="Prompts, one a line", lines=3, info="Empty: prompts of the first adapter")
        with gr.Column(min_width=300):
            num = slider(1, 8, 2, step=1, label="Images of each prompt")
            with gr.Row():
                seed = gr.Number(0, label="Seed", precision=0, min_width=120)
                name = gr.Textbox("", label="Name of the comparison", min_width=160)
            start = gr.Button("Compare", variant="primary")
    line = parts.status()

    with gr.Row():
        done, show = gr.Dropdown(workspace.comparisons(), label="Finished comparisons", scale=3), gr.Button("Show")
    said_of_drift = "Scores: drift is how much images of other things change; less of it is better"
    numbers = gr.Dataframe(label=said_of_drift, headers=["", "base"], interactive=False, wrap=True)
    grid = parts.picture("The first image of each prompt", "Grid of images, a row for each adapter")

    def compare(names: list[str] | None, texts: str, count: Any, first: Any, title: str) -> Shown:
        if not names:
            raise UserError("choose one adapter or more.")
        out, runs = workspace.new(title), [workspace.run(each) for each in names]
        words = ["compare", *runs, "--num", int(count), "--seed", parts.checked_seed(first)]
        words += ["--base", base, "--out", out]
        for text in filter(None, map(str.strip, texts.splitlines())):
            words += ["--prompt", text]
        outside = not workspace.own_images(names[0])
        job = queue.add([*words, *(["--images", NO_IMAGES] if outside else [])], out)
        why = " Without fidelity, because its images are outside the workspace." if outside else ""
        yield {line: said(f"Queued, see Learn: {job.command}.{why} When it is finished, choose it below.")}

    def shown(title: str | None) -> Shown:
        if title is None or title not in workspace.comparisons():
            raise UserError("choose a finished comparison from the list.")
        found, sheet = read_comparison(workspace.folder / title)
        rows = [[label, *values] for label, values in table(found)]
        yield {numbers: gr.Dataframe(rows, headers=["", *found]), grid: workspace.picture(sheet), line: said("")}

    inputs = [chosen, prompts, num, seed, name]
    start.click(parts.reporting(line, compare), inputs, line, **parts.LIVE)
    gr.on([show.click, done.input], parts.reporting(line, shown), done, [numbers, grid, line], **parts.LIVE)
    return {done: workspace.comparisons, chosen: workspace.adapters}
