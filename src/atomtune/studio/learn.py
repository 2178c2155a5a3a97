"""Learn: images and a name in, a run out; and every job, whoever started it."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import gradio as gr
import pandas as pd

from atomtune.errors import UserError
from atomtune.jobs import Queue, overview
from atomtune.sampling import read_image
from atomtune.shipped import IMAGES
from atomtune.studio import parts
from atomtune.studio.parts import Shown, said
from atomtune.training import journal
from atomtune.training.data import find_examples
from atomtune.training.recipes import recipe_names
from atomtune.workspace import MOST, Workspace

OWN_RECIPE = "default"
HEADS = ["Run", "Job", "State"]
UNSAID = "a sks subject"


def tab(base: str, workspace: Workspace, queue: Queue) -> None:
    """Build the tab."""
    captions, uploads, known = gr.State([]), gr.State([]), gr.State(("", []))
    anew = gr.State("")  # changes when all captions are to be shown again; while one is typed they are not
    recipes = [OWN_RECIPE, *recipe_names(base)]
    with gr.Row():
        with gr.Column(min_width=300):
            files = gr.File(label=f"Images of the subject, {MOST} at most", file_count="multiple", file_types=["image"])
            example = gr.Button("Take the example: five images of a teapot", size="sm")
        with gr.Column(min_width=300):
            subject = gr.Textbox("", label="What is it?", info="One or two words that the base knows, such as teapot")
            name = gr.Textbox("", label="Name of the run", info="A new one, such as my-teapot")
            with gr.Row():
                recipe = gr.Dropdown(recipes, value=OWN_RECIPE, label="Recipe", min_width=160)
                steps = gr.Number(0, label="Training steps", info="0: those of the recipe", precision=0, min_width=160)
            start = gr.Button("Learn", variant="primary")
    line = parts.status()

    @gr.render(inputs=[uploads, captions], triggers=[anew.change], show_progress="hidden")
    def beside(shown: list[str], texts: list[str]) -> None:
        """Each image with its caption beside it."""
        look: dict[str, Any] = {"height": 110, "width": 110, "min_width": 110, "scale": 0, "buttons": []}
        for first in range(0, len(shown), 2):
            with gr.Row():
                for number in range(first, min(first + 2, len(shown))):
                    with gr.Column(min_width=260), gr.Row():
                        image, alt = workspace.picture(workspace.upload(shown[number])), f"Image {number + 1}"
                        gr.Image(image, alt_text=alt, show_label=False, interactive=False, **look)
                        label = f"Caption {number + 1}"
                        box = gr.Textbox(texts[number], label=label, lines=2, min_width=130, interactive=True)
                        box.input(_storing(number), [captions, box], captions, **parts.QUIET)

    gr.Markdown("### Runs and jobs")
    table = gr.Dataframe(
        headers=HEADS, label="What waits or runs comes first: click one", interactive=False, datatype="str", wrap=True,
        max_height=320, column_widths=["25%", "15%", "60%"],
    )  # fmt: skip
    with gr.Row():
        own: dict[str, Any] = {"value": lambda: overview(queue, workspace.runs())[0][0], "allow_custom_value": True}
        chosen = gr.Dropdown([], label="Run", scale=3, **own)
        stop, resume = gr.Button("Stop"), gr.Button("Resume")
    state = parts.status()
    with gr.Row():
        loss = gr.LinePlot(x="step", y="loss", label="Loss", height=330, min_width=300)
        samples = gr.Gallery(
            label="Samples, the newest first", columns=3, height=330, interactive=False, min_width=300,
            object_fit="contain",
        )  # fmt: skip

    def taken(given: list[str] | None, word: str) -> Shown:
        given = given or []
        if len(given) > MOST:
            raise UserError(f"{MOST} images at most, got {len(given)}: leave some out.")
        for file in given:
            workspace.upload(file)
        texts = [f"a sks {word.strip()}" if word.strip() else UNSAID] * len(given)
        yield {uploads: given, captions: texts, anew: uuid4().hex, line: said("")}

    def example_taken() -> Shown:
        found = find_examples(IMAGES / "teapot", "a sks teapot")
        yield {
            uploads: [str(file) for file in found], captions: list(found.values()), anew: uuid4().hex,
            subject: "teapot",
            line: said("Five images of a teapot, which moji has never seen. Give the run a name, and press Learn."),
        }  # fmt: skip

    def named(word: str, texts: list[str]) -> Shown:
        if word.strip() and {*texts} == {UNSAID}:
            yield {captions: [f"a sks {word.strip()}"] * len(texts), anew: uuid4().hex}

    def learn(shown: list[str], texts: list[str], word: str, title: str, kind: str, count: Any) -> Shown:
        if not shown:
            raise UserError("there are no images: drop some, or take the example.")
        if not word.strip():
            raise UserError("say what it is in a word or two, such as teapot.")
        out = workspace.new(title)
        words = ["customize", workspace.save_images(title, shown, texts), "--class-name", word.strip(), "--out", out]
        words += ["--base", base, *(["--config", kind] if kind != OWN_RECIPE else [])]
        job = queue.add([*words, *(["--steps", int(count)] if count else [])], out)
        yield {line: said(f"Queued: {job.command}"), chosen: out.name}

    def watched(asked: str, seen: tuple[str, list[str]]) -> Shown:
        rows = overview(queue, workspace.runs())
        names, selected = [row[0] for row in rows], asked or rows[0][0]
        folder = workspace.runs().get(selected)
        progress = folder and journal.read(folder)
        now = f"{selected} {rows} {len(progress.losses) if progress else 0}"
        if now == seen[0]:  # nothing new: send nothing
            yield {known: seen}
            return
        where = next((row[2] for row in rows if row[0] == selected), "")
        where += ". It is in the lists of the other tabs." if selected in workspace.adapters() else ""
        shown: dict[Any, Any] = {known: (now, names), state: said(where)}
        if names != seen[1]:  # an update closes an open list
            shown[chosen] = gr.Dropdown(choices=names)
        shown[table] = gr.Dataframe([[*row] for row in rows], headers=HEADS)
        if folder and progress:
            drawn = sorted((folder / "samples").glob("step-*.png"), reverse=True)[:6]
            shown[loss] = pd.DataFrame(progress.curve(), columns=["step", "loss"])
            steps_of = [f"step {int(file.name.split('-')[1])}" for file in drawn]
            shown[samples] = [(workspace.picture(read_image(file)), step) for file, step in zip(drawn, steps_of)]
        yield shown

    def stopped(selected: str) -> Shown:
        queue.stop_run(workspace.shown / selected)
        yield {state: said(f"{selected} stops after its step, with a checkpoint.")}

    def resumed(selected: str) -> Shown:
        out = workspace.run(selected)
        progress = journal.read(out)
        if progress is None or progress.state != "stopped":
            raise UserError(f"{selected} is not a stopped run: there is nothing to resume.")
        words = ["customize", "--config", out / "config.yaml"]
        workspace.refuse_outside(selected, words)
        queue.add(words, out)
        yield {state: said(f"{selected} goes on.")}

    def in_table(event: gr.SelectData) -> str:
        return event.row_value[0]

    report, quiet = parts.reporting, parts.QUIET
    files.upload(report(line, taken), [files, subject], [uploads, captions, anew, line], **quiet)
    files.clear(lambda: ([], [], ""), None, [uploads, captions, anew], **quiet)
    example.click(report(line, example_taken), None, [uploads, captions, anew, subject, line], **quiet)
    subject.blur(report(line, named), [subject, captions], [captions, anew, line], **quiet)
    start.click(report(line, learn), [uploads, captions, subject, name, recipe, steps], [line, chosen], **parts.LIVE)
    outputs = [table, chosen, known, state, loss, samples]
    gr.on([gr.Timer(2).tick, chosen.change], report(state, watched), [chosen, known], outputs, **quiet)
    table.select(in_table, None, chosen, **quiet)
    stop.click(report(state, stopped), chosen, state, **quiet)
    resume.click(report(state, resumed), chosen, state, **quiet)


def _storing(number: int) -> Any:
    """A handler that stores the caption of one image."""
    return lambda texts, text: [*texts[:number], text, *texts[number + 1 :]]
