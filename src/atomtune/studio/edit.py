"""Edit: one image, what it should become, and the ladder of atoms from which a person picks the best."""

from __future__ import annotations

from typing import Any

import gradio as gr

from atomtune.editing import read_ladder
from atomtune.errors import UserError
from atomtune.jobs import Queue
from atomtune.shell import command_line
from atomtune.shipped import IMAGES
from atomtune.studio import parts
from atomtune.studio.parts import Shown, said
from atomtune.workspace import Workspace

EXAMPLE = ("a teapot on a green background", "a teapot on a red background")


def tab(base: str, workspace: Workspace, queue: Queue) -> parts.Lists:
    """Build the tab. Returns its lists."""
    with gr.Row():
        image = gr.Image(label="Image", height=300, type="filepath", sources=["upload", "clipboard"], image_mode=None)
        with gr.Column(min_width=300):
            source = gr.Textbox("", label="What it shows now", info="Such as: a teapot on a green background")
            prompt = gr.Textbox("", label="What it should become", info="Such as: a teapot on a red background")
            with gr.Row():
                name = gr.Textbox("", label="Name of the run", info="A new one", min_width=160)
                steps = gr.Number(0, label="Training steps", info="0: those of the recipe", precision=0, min_width=160)
            with gr.Row():
                start, example = gr.Button("Edit", variant="primary"), gr.Button("Take the example")
    line = parts.status()

    with gr.Row():
        done, show = gr.Dropdown(workspace.edits(), label="Finished edits", scale=3), gr.Button("Show")
    ladder = gr.Gallery(
        label="With fewer and fewer atoms, and scores of prompt and image: click the best", columns=5,
        interactive=False, allow_preview=False, object_fit="contain", elem_classes="gallery",
    )  # fmt: skip
    with gr.Row():
        title, save = gr.Textbox("my-edit", label="Name of the preset"), gr.Button("Save the chosen one as preset")
    command = gr.Code(label="Draw more of it", language="shell", interactive=False, lines=1, visible=False)
    rungs, picked = gr.State([]), gr.State(None)

    def edit(file: str | None, was: str, wanted: str, run: str, count: Any) -> Shown:
        if file is None:
            raise UserError("there is no image: drop one, or take the example.")
        if not wanted.strip():
            raise UserError("say what the image should become.")
        out = workspace.new(run)
        given = workspace.save_images(run, [file], [was or "an image"]) / "00.png"
        words = ["edit", given, "--prompt", wanted.strip(), "--out", out, "--base", base]
        words += ["--source-prompt", was.strip()] if was.strip() else []
        job = queue.add([*words, *(["--steps", int(count)] if count else [])], out)
        yield {line: said(f"Queued, see Learn: {job.command}. When it is finished, choose it below.")}

    def shown(run: str | None) -> Shown:
        result, found = read_ladder(workspace.run(run))
        pictures = []
        for rung, each in found:
            scores = "" if rung.alignment is None else f": prompt {rung.alignment:.2f}, image {rung.fidelity:.2f}"
            words = f"{'Best: ' * (rung.label == result['best'])}{rung.label}{scores}"
            pictures.append((workspace.picture(each), words))
        best = f"the best is {result['best']}" if result["best"] else "none keeps both the image and the prompt"
        choices = [(result["prompt"], rung) for rung, _ in found]
        yield {ladder: pictures, rungs: choices, picked: None, line: said(f"{result['prompt']}: {best}.")}

    def chosen(all_rungs: list[Any], event: gr.SelectData) -> Shown:
        yield {picked: all_rungs[event.index], line: said(f"Chosen: {all_rungs[event.index][1].label}.")}

    def saved(run: str | None, choice: Any, preset: str) -> Shown:
        if choice is None:
            raise UserError("click one of the images first.")
        file = workspace.save_preset(preset, choice[1].preset)
        words = ["generate", workspace.run(run), "--prompt", choice[0], "--preset", file, "--num", 4]
        yield {command: gr.Code(command_line(*words), visible=True), line: said(f"Saved as {file}.")}

    report, quiet = parts.reporting, parts.QUIET
    example.click(lambda: (workspace.copy(IMAGES / "teapot.png"), *EXAMPLE), None, [image, source, prompt], **quiet)
    start.click(report(line, edit), [image, source, prompt, name, steps], line, **parts.LIVE)
    gr.on([show.click, done.input], report(line, shown), done, [ladder, rungs, picked, line], **parts.LIVE)
    ladder.select(report(line, chosen), rungs, [picked, line], **quiet)
    save.click(report(line, saved), [done, picked, title], [command, line], **quiet)
    return {done: workspace.edits}
