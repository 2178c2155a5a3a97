"""Learn: images and a name in, a run out; and every job, whoever started it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import pandas as pd

from atomtune.errors import UserError
from atomtune.jobs import ENDED, Queue
from atomtune.sampling import read_image
from atomtune.shipped import IMAGES
from atomtune.studio import parts
from atomtune.studio.parts import said
from atomtune.training import journal
from atomtune.training.data import find_examples
from atomtune.training.recipes import load_recipe, recipe_names
from atomtune.workspace import MOST, Workspace

OWN_RECIPE = "the recipe for this base"
SAMPLES = 6
HEADS = ["Run", "Job", "State"]


def tab(base: str, workspace: Workspace, queue: Queue) -> None:
    """Build the tab."""
    captions, uploads = gr.State([]), gr.State([])
    with gr.Row():
        with gr.Column(min_width=300):
            files = gr.File(label=f"Images of the subject, {MOST} at most", file_count="multiple", file_types=["image"])
            example = gr.Button("Take the example: five images of a teapot", size="sm")
        with gr.Column(min_width=300):
            subject = gr.Textbox("", label="What is it?", info="One or two words that the base knows, such as teapot")
            name = gr.Textbox("", label="Name of the run", info="A new one, such as my-teapot")
            with gr.Row():
                recipe = gr.Dropdown(_recipes(base), value=OWN_RECIPE, label="Recipe", min_width=160)
                steps = gr.Number(0, label="Training steps", info="0: those of the recipe", precision=0, min_width=160)
            start = gr.Button("Learn", variant="primary")
    line = parts.status()

    @gr.render(inputs=[uploads, captions], triggers=[uploads.change], show_progress="hidden")
    def beside(shown: list[str], texts: list[str]) -> None:
        """Each image with its caption beside it."""
        for first in range(0, len(shown), 3):
            with gr.Row():
                for number in range(first, min(first + 3, len(shown))):
                    with gr.Column(min_width=260), gr.Row():
                        image = parts.enlarged(workspace.upload(shown[number]))
                        gr.Image(
                            image, alt_text=f"Image {number + 1}", show_label=False, height=110, width=110, min_width=110,
                            scale=0, interactive=False, buttons=[], format="png",
                        )  # fmt: skip
                        box = gr.Textbox(
                            texts[number], label=f"Caption {number + 1}", lines=3, min_width=130, interactive=True
                        )
                        box.input(_caption(number), [captions, box], captions, show_progress="hidden")

    gr.Markdown("### Runs and jobs", elem_classes="heading")
    table = gr.Dataframe(
        headers=HEADS, label="The newest first: click one", interactive=False, datatype="str", wrap=True, max_height=260,
        column_widths=["25%", "15%", "60%"],
    )  # fmt: skip
    with gr.Row():
        chosen = gr.Dropdown([], label="Run", allow_custom_value=True, scale=3)
        stop, resume = gr.Button("Stop"), gr.Button("Resume")
    state = parts.status()
    with gr.Row():
        loss = gr.LinePlot(x="step", y="loss", label="Loss", height=260, min_width=300)
        samples = gr.Gallery(
            label="Samples, the newest first", columns=3, height=260, format="png", interactive=False, min_width=300,
            object_fit="contain",
        )  # fmt: skip
    known = gr.State("")

    def taken(given: list[str] | None, word: str) -> Iterator[dict[Any, Any]]:
        given = given or []
        if len(given) > MOST:
            raise UserError(f"{MOST} images at most, got {len(given)}: leave some out.")
        for file in given:
            workspace.upload(file)
        caption = f"a sks {word.strip() or 'subject'}"
        yield {uploads: given, captions: [caption] * len(given), line: said("")}

    def example_taken() -> Iterator[dict[Any, Any]]:
        found = find_examples(IMAGES / "teapot", "a sks teapot")
        yield {
            uploads: [str(file) for file in found], captions: list(found.values()), subject: "teapot",
            line: said("Five images of a teapot, which moji has never seen. Give the run a name, and press Learn."),
        }  # fmt: skip

    def renamed(word: str, texts: list[str], shown: list[str]) -> Iterator[dict[Any, Any]]:
        if all(text == "a sks subject" for text in texts) and word.strip():
            yield {captions: [f"a sks {word.strip()}"] * len(texts), uploads: [*shown]}

    def learn(
        shown: list[str], texts: list[str], word: str, title: str, chosen_recipe: str, count: Any
    ) -> Iterator[dict[Any, Any]]:
        if not shown:
            raise UserError("there are no images: drop some, or take the example.")
        if not word.strip():
            raise UserError("say what it is in a word or two, such as teapot.")
        out = workspace.new(title)
        folder = workspace.save_images(title, shown, texts)
        words = ["customize", folder, "--class-name", word.strip(), "--out", out, "--base", base]
        words += ["--config", chosen_recipe] if chosen_recipe != OWN_RECIPE else []
        words += ["--steps", int(count)] if count else []
        job = queue.add(words, out)
        queue.advance()
        yield {line: said(f"Queued: {job.command}"), chosen: out.name}

    def watched(selected: str, seen: str) -> Iterator[dict[Any, Any]]:
        rows = _rows(workspace, queue)
        shown: dict[Any, Any] = {table: gr.Dataframe(rows, headers=HEADS)}
        if not selected and rows:
            selected = rows[0][0]
            shown[chosen] = selected
        folder = workspace.runs().get(selected)
        progress = folder and journal.read(folder)
        now = f"{selected} {progress} {len(progress.losses) if progress else 0}"
        if now + str(rows) == seen:  # nothing new: send nothing
            yield {known: seen}
            return
        shown |= {known: now + str(rows), state: said(next((row[2] for row in rows if row[0] == selected), ""))}
        if folder and progress:
            frame = pd.DataFrame(_thinned(progress.losses), columns=["step", "loss"])
            drawn = sorted((folder / "samples").glob("step-*.png"), reverse=True)[:SAMPLES]
            pictures = [(parts.enlarged(read_image(file)), file.stem.split("-")[1].lstrip("0")) for file in drawn]
            shown |= {loss: frame, samples: [(image, f"step {step}") for image, step in pictures]}
        yield shown

    def stopped(selected: str) -> Iterator[dict[Any, Any]]:
        for job in queue.jobs():
            if Path(job.out).name == selected and job.state not in ENDED:
                queue.stop(job.number)
                break
        else:
            journal.stop(workspace.run(selected))
        yield {state: said(f"{selected} stops after its step, with a checkpoint.")}

    def resumed(selected: str) -> Iterator[dict[Any, Any]]:
        out = workspace.run(selected)
        progress = journal.read(out)
        if progress is None or progress.state != "stopped":
            raise UserError(f"{selected} is not a stopped run: there is nothing to resume.")
        words = ["customize", "--config", out / "config.yaml"]
        workspace.refuse_outside(selected, words)
        queue.add(words, out)
        queue.advance()
        yield {state: said(f"{selected} goes on.")}

    def selected_row(event: gr.SelectData) -> str:
        return event.row_value[0]

    quiet: dict[str, Any] = {"show_progress": "hidden", "concurrency_limit": None}
    files.upload(parts.reporting(line, taken), [files, subject], [uploads, captions, line], **quiet)
    files.clear(lambda: ([], []), None, [uploads, captions], **quiet)
    example.click(parts.reporting(line, example_taken), None, [uploads, captions, subject, line], **quiet)
    subject.blur(parts.reporting(line, renamed), [subject, captions, uploads], [captions, uploads, line], **quiet)
    inputs = [uploads, captions, subject, name, recipe, steps]
    start.click(parts.reporting(line, learn), inputs, [line, chosen], concurrency_limit=None)
    outputs = [table, chosen, known, state, loss, samples]
    gr.on([gr.Timer(2).tick, chosen.change], parts.reporting(state, watched), [chosen, known], outputs, **quiet)
    table.select(selected_row, None, chosen, **quiet)
    stop.click(parts.reporting(state, stopped), chosen, state, **quiet)
    resume.click(parts.reporting(state, resumed), chosen, state, **quiet)


def _recipes(base: str) -> list[str]:
    return [OWN_RECIPE, *(name for name in recipe_names() if load_recipe(name)["base"] == base)]


def _caption(number: int) -> Any:
    """A handler that stores the caption of one image."""

    def store(texts: list[str], text: str) -> list[str]:
        return [*texts[:number], text, *texts[number + 1 :]]

    return store


def _rows(workspace: Workspace, queue: Queue) -> list[list[str]]:
    """Name, command and state of every job and run, jobs that wait or run first."""
    latest = {Path(job.out).name: job for job in queue.jobs()}
    rows = {}
    for name, job in sorted(latest.items(), key=lambda item: (item[1].state in ENDED, -item[1].number)):
        said_by = job.message if job.state in ENDED else ""
        rows[name] = [name, job.words[0], f"{job.state}: {said_by}" if said_by else job.state]
    for name, path in workspace.runs().items():
        progress = journal.read(path)
        job = latest.get(name)
        if progress is not None and (job is None or job.state != "queued") and (job is None or job.state != "failed"):
            rows[name] = [name, job.words[0] if job else "customize", str(progress)]
        rows.setdefault(name, [name, "", "an adapter"])
    return list(rows.values())


def _thinned(losses: list[tuple[int, float]], most: int = 200) -> list[tuple[int, float]]:
    """Means over so many steps that `most` points are left."""
    size = -(-len(losses) // most) or 1
    groups = [losses[first : first + size] for first in range(0, len(losses), size)]
    return [(group[-1][0], sum(loss for _, loss in group) / len(group)) for group in groups]
