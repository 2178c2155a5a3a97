"""Compare: base, LoRA and atoms on the same prompts and seeds, in images and numbers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from atomtune.comparing import NO_IMAGES, RESULTS
from atomtune.errors import UserError
from atomtune.jobs import Queue
from atomtune.metrics.scores import table as score_table
from atomtune.sampling import read_image
from atomtune.studio import parts
from atomtune.studio.parts import said
from atomtune.workspace import Workspace

MOST = 4


def tab(base: str, workspace: Workspace, queue: Queue) -> None:
    """Build the tab."""
    with gr.Row():
        with gr.Column(min_width=300):
            chosen = gr.Dropdown(
                workspace.adapters(), label="Adapters, of any method", multiselect=True, max_choices=MOST,
                info="The base is always beside them",
            )  # fmt: skip
            prompts = gr.Textbox("", label="Prompts, one a line", lines=4, info="Empty: prompts of the first adapter")
        with gr.Column(min_width=300):
            with gr.Row():
                num = gr.Slider(1, 8, 2, step=1, label="Images of each prompt", min_width=160)
                seed = gr.Number(0, label="Seed", precision=0, minimum=0, min_width=160)
            name = gr.Textbox("", label="Name of the comparison")
            start = gr.Button("Compare", variant="primary")
    line = parts.status()
    with gr.Row():
        done = gr.Dropdown(_comparisons(workspace), label="Finished comparisons", scale=3)
        show = gr.Button("Show")
    numbers = gr.Dataframe(
        label="Scores: drift is how much prompts of other things change", interactive=False, wrap=True
    )
    grid = parts.picture("The first image of each prompt", "Grid of images, a row for each adapter")

    def compare(names: list[str], texts: str, count: Any, first: Any, title: str) -> Iterator[dict[Any, Any]]:
        if not names:
            raise UserError("choose one adapter or more.")
        out, runs = workspace.new(title), [workspace.run(each) for each in names]
        words = ["compare", *runs, "--num", int(count), "--seed", int(first or 0), "--base", base, "--out", out]
        for text in filter(None, map(str.strip, texts.splitlines())):
            words += ["--prompt", text]
        outside = not workspace.own_images(names[0])
        words += ["--images", NO_IMAGES] if outside else []
        job = queue.add(words, out)
        queue.advance()
        why = " Without fidelity, because its images are outside the workspace." if outside else ""
        yield {line: said(f"Queued, and shown under Learn: {job.command}.{why}")}

    def shown(title: str | None) -> Iterator[dict[Any, Any]]:
        if title not in _comparisons(workspace):
            raise UserError(f"there is no finished comparison {title!r}: choose one of the list.")
        scores, sheet = (workspace.folder / title / file for file in RESULTS)
        try:
            found = json.loads(scores.read_text(encoding="utf-8"))["scores"]
            rows = [[label, *values] for label, values in score_table(found)]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{scores} cannot be read: compare again.") from error
        yield {numbers: gr.Dataframe(rows, headers=["", *found]), grid: read_image(sheet), line: said("")}

    def refreshed() -> Any:
        return gr.Dropdown(choices=_comparisons(workspace))

    live: dict[str, Any] = {"concurrency_limit": None}
    quiet = live | {"show_progress": "hidden"}
    start.click(parts.reporting(line, compare), [chosen, prompts, num, seed, name], line, **live)
    done.focus(refreshed, None, done, **quiet)
    chosen.focus(lambda: gr.Dropdown(choices=workspace.adapters()), None, chosen, **quiet)
    gr.on([show.click, done.input], parts.reporting(line, shown), done, [numbers, grid, line], **live)


def _comparisons(workspace: Workspace) -> list[str]:
    folders = sorted(workspace.folder.iterdir(), key=lambda path: -path.lstat().st_mtime)
    return [path.name for path in map(Path, folders) if workspace.holds(path, *RESULTS)]
