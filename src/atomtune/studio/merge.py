"""Merge: several adapters in one, seen before it is written."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr

from atomtune.analysis.overlap import verdict
from atomtune.easel import Easel
from atomtune.errors import UserError
from atomtune.jobs import Queue
from atomtune.studio import parts
from atomtune.studio.parts import said
from atomtune.workspace import Workspace

MOST = 4


def tab(easel: Easel, workspace: Workspace, queue: Queue) -> None:
    """Build the tab."""
    with gr.Row():
        with gr.Column(min_width=300):
            chosen = gr.Dropdown(
                workspace.adapters(), label="Adapters, two to four", multiselect=True, max_choices=MOST
            )
            kind = gr.Radio(["cat", "linear"], value="cat", label="Kind", info="cat: exactly the sum of what they add")
            weights = [gr.Slider(-1, 2, 1, step=0.05, label=f"Weight {n + 1}", visible=n < 2) for n in range(MOST)]
            prompt = gr.Textbox("a sks teapot on a white background", label="Prompt")
            seed, steps = gr.Number(0, label="Seed", precision=0), gr.Slider(2, 50, 20, step=1, label="Sampling steps")
            with gr.Row():
                draw, stop = gr.Button("Preview", variant="primary"), gr.Button("Stop")
        with gr.Column(min_width=300):
            with gr.Row():
                base, image = parts.picture("Base"), parts.picture("Merged")
            line = parts.status()
            measure = gr.Button("Measure the overlap of the first two")
            table = gr.Dataframe(
                headers=["Layer", "Same directions", "Both act, 1", "Both act, 2", "Cosine, 1", "Cosine, 2"],
                label="Overlap: 1 and 2 are the prompts of the first and of the second adapter", interactive=False,
                datatype="str", max_height=300,
            )  # fmt: skip
            with gr.Row():
                name, write = gr.Textbox("", label="Name of the merged adapter"), gr.Button("Write it")

    def preview(request: gr.Request, names: list[str], how: str, *given: Any) -> Iterator[dict[Any, Any]]:
        check = easel.turn(str(request.session_hash))
        asked = parts.checked(*given[MOST:])
        if len(names or []) < 2:
            raise UserError("choose two adapters or more.")
        folders = [workspace.run(each) for each in names]
        yield {line: said("Merging …")}
        few = min(parts.DRAFT, asked[2])
        with easel.merged(folders, how, list(given[: len(names)]), workspace.cache) as both:
            yield {image: parts.enlarged(easel.draw(asked[0], asked[1], few, both, check=check)), line: said("Draft …")}
            full = parts.enlarged(easel.draw(*asked, both, check=check))
        said_of = ", ".join(f"{each} × {weight:g}" for each, weight in zip(names, given))
        yield {image: full, line: said(f"{said_of}: nothing is written yet.")}
        yield {base: parts.enlarged(easel.draw(*asked, check=check))}

    def measured(request: gr.Request, names: list[str]) -> Iterator[dict[Any, Any]]:
        check = easel.turn(str(request.session_hash))
        if len(names or []) < 2:
            raise UserError("choose two adapters or more.")
        yield {line: said("Drawing prompts of both, with both at work …")}
        found = easel.overlap(*map(workspace.run, names[:2]), check)
        rows = [
            [each.address, f"{each.span_overlap:.2f} (chance {each.chance:.2f})", *(f"{b:.0%}" for b in each.both),
             *(f"{cosine:+.2f}" for cosine in each.cosine)]
            for each in found.layers
        ]  # fmt: skip
        yield {table: rows, line: said(verdict(found))}

    def written(names: list[str], how: str, title: str, *given: float) -> Iterator[dict[Any, Any]]:
        if len(names or []) < 2:
            raise UserError("choose two adapters or more.")
        out, folders = workspace.new(title), [workspace.run(each) for each in names]
        numbers = ",".join(f"{weight:g}" for weight in given[: len(names)])
        job = queue.add(["merge", *folders, "--combination-type", how, f"--weights={numbers}", "--out", out], out)
        queue.advance()
        yield {line: said(f"Queued, and shown under Learn: {job.command}")}

    def counted(names: list[str]) -> list[Any]:
        labels = [*(names or []), *[""] * MOST][:MOST]
        shown = max(2, len(names or []))
        return [gr.Slider(visible=n < shown, label=f"Weight of {labels[n] or n + 1}") for n in range(MOST)]

    def stopped(request: gr.Request) -> Iterator[dict[Any, Any]]:
        easel.stop(str(request.session_hash))
        yield {line: said("Stopped.")}

    live: dict[str, Any] = {"concurrency_limit": None, "trigger_mode": "multiple", "show_progress": "minimal"}
    quiet = live | {"show_progress": "hidden"}
    inputs = [chosen, kind, *weights, prompt, seed, steps]
    triggers = [draw.click, kind.input, *(weight.input for weight in weights)]
    gr.on(triggers, parts.reporting(line, preview), inputs, [base, image, line], **live)
    chosen.change(counted, chosen, weights, **quiet)
    chosen.focus(lambda: gr.Dropdown(choices=workspace.adapters()), None, chosen, **quiet)
    measure.click(parts.reporting(line, measured), chosen, [table, line], **live)
    write.click(parts.reporting(line, written), [chosen, kind, name, *weights], line, **live)
    stop.click(parts.reporting(line, stopped), None, line, **quiet)
