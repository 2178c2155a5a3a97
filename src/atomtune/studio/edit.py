"""Edit: one image, what it should become, and the ladder of atoms from which a person picks the best."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from atomtune.editing import read_ladder
from atomtune.errors import UserError
from atomtune.files import write_text
from atomtune.jobs import Queue
from atomtune.shell import command_line
from atomtune.shipped import IMAGES
from atomtune.studio import parts
from atomtune.studio.parts import said
from atomtune.workspace import Workspace


def tab(base: str, workspace: Workspace, queue: Queue) -> None:
    """Build the tab."""
    with gr.Row():
        image = gr.Image(
            label="Image to edit", type="filepath", sources=["upload", "clipboard"], height=260, format="png"
        )
        with gr.Column(min_width=300):
            source = gr.Textbox("", label="What it shows now", info="Such as: a teapot on a green background")
            prompt = gr.Textbox("", label="What it should become", info="Such as: a teapot on a red background")
            with gr.Row():
                name = gr.Textbox("", label="Name of the run", min_width=160)
                steps = gr.Number(0, label="Training steps", info="0: those of the recipe", precision=0, min_width=160)
            with gr.Row():
                start = gr.Button("Edit", variant="primary")
                example = gr.Button("Take the example")
    line = parts.status()
    with gr.Row():
        done = gr.Dropdown(_edits(workspace), label="Finished edits", scale=3)
        show = gr.Button("Show")
    ladder = gr.Gallery(
        label="From all atoms to the fewest: click the best", columns=6, format="png", interactive=False,
        allow_preview=False, object_fit="contain", height=420,
    )  # fmt: skip
    with gr.Row():
        title = gr.Textbox("my-edit", label="Name of the preset")
        save = gr.Button("Save the chosen one as preset")
    command = gr.Code(label="Draw more of it", language="shell", interactive=False)
    rungs, picked = gr.State([]), gr.State(None)

    def edit(file: str | None, was: str, wanted: str, run: str, count: Any) -> Iterator[dict[Any, Any]]:
        if file is None:
            raise UserError("there is no image: drop one, or take the example.")
        if not wanted.strip():
            raise UserError("say what the image should become.")
        out = workspace.new(run)
        given = workspace.save_images(run, [file], [was or "an image"]) / "00.png"
        words = ["edit", given, "--prompt", wanted.strip(), "--out", out, "--base", base]
        words += ["--source-prompt", was.strip()] if was.strip() else []
        words += ["--steps", int(count)] if count else []
        job = queue.add(words, out)
        queue.advance()
        yield {line: said(f"Queued, and shown under Learn: {job.command}. Its ladder appears below when it is done.")}

    def shown(run: str | None) -> Iterator[dict[Any, Any]]:
        result, found = read_ladder(workspace.run(run))
        pictures = []
        for rung, each in found:
            scores = "" if rung.alignment is None else f" · prompt {rung.alignment:.2f} · image {rung.fidelity:.2f}"
            best = "best: " if rung.label == result["best"] else ""
            pictures.append((parts.enlarged(each), f"{best}{rung.label}{scores}"))
        yield {
            ladder: pictures, rungs: [(result["prompt"], rung) for rung, _ in found], picked: None,
            line: said(f"{result['prompt']}: {'best is ' + result['best'] if result['best'] else 'no rung is best'}."),
        }  # fmt: skip

    def chosen(all_rungs: list[Any], event: gr.SelectData) -> Iterator[dict[Any, Any]]:
        yield {picked: all_rungs[event.index], line: said(f"Chosen: {all_rungs[event.index][1].label}.")}

    def saved(run: str | None, choice: Any, preset: str) -> Iterator[dict[Any, Any]]:
        if choice is None:
            raise UserError("click one of the images first.")
        file, out = workspace.preset_file(preset), workspace.run(run)
        write_text(file, json.dumps(choice[1].preset, indent=1) + "\n")
        words = ["generate", out, "--prompt", choice[0], "--preset", file, "--num", 4]
        yield {command: command_line(*words), line: said(f"Saved as {file}.")}

    def refreshed() -> Any:
        return gr.Dropdown(choices=_edits(workspace))

    def example_taken() -> tuple[str, str, str]:
        return str(IMAGES / "teapot.png"), "a teapot on a green background", "a teapot on a red background"

    report: dict[str, Any] = {"concurrency_limit": None}
    example.click(example_taken, None, [image, source, prompt], **report)
    start.click(parts.reporting(line, edit), [image, source, prompt, name, steps], line, **report)
    done.focus(refreshed, None, done, show_progress="hidden", **report)
    gr.on([show.click, done.input], parts.reporting(line, shown), done, [ladder, rungs, picked, line], **report)
    ladder.select(parts.reporting(line, chosen), rungs, [picked, line], show_progress="hidden", **report)
    save.click(parts.reporting(line, saved), [done, picked, title], [command, line], **report)


def _edits(workspace: Workspace) -> list[str]:
    return [name for name, path in workspace.runs().items() if (Path(path) / "edit.json").is_file()]
