"""Merge: several adapters in one, seen before it is written."""

from __future__ import annotations

from typing import Any

import gradio as gr

from atomtune.analysis.overlap import verdict
from atomtune.easel import Easel
from atomtune.errors import UserError
from atomtune.jobs import Queue
from atomtune.studio import parts
from atomtune.studio.parts import Shown, said, slider
from atomtune.workspace import Workspace

MOST = 4
HEADS = ["Layer", "Same directions", "Both act", "Cosine"]


def tab(easel: Easel, workspace: Workspace, queue: Queue) -> parts.Lists:
    """Build the tab. Returns its lists."""
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            chosen = gr.Dropdown(
                workspace.adapters(), label="Adapters, two to four", multiselect=True, max_choices=MOST
            )
            kind = gr.Radio(["cat", "linear"], value="cat", label="Kind", info="Sum what they add, or their tensors")
            weights = [slider(-1, 2, 1, step=0.05, label=f"Weight {n + 1}", visible=n < 2) for n in range(MOST)]
            prompt = gr.Textbox("a sks teapot on a white background", label="Prompt")
            seed = gr.Number(0, label="Seed", precision=0)
            steps = slider(2, 50, 20, step=1, label="Sampling steps")
            with gr.Row():
                draw, stop = gr.Button("Preview", variant="primary"), gr.Button("Stop")
        with gr.Column(scale=3, min_width=300):
            with gr.Row():
                base, image = parts.picture("Base"), parts.picture("Merged")
            line = parts.status()
            with gr.Row():
                name = gr.Textbox("", label="Name of the merged adapter")
                write, measure = gr.Button("Write it"), gr.Button("Overlap of the first two")
            table = gr.Dataframe(
                headers=HEADS, label="Overlap; of two numbers the first is on prompts of the first adapter",
                interactive=False, datatype="str", max_height=300,
            )  # fmt: skip

    def runs(names: list[str] | None) -> list[Any]:
        if len(names or []) < 2:
            raise UserError("choose two adapters or more.")
        return [workspace.run(each) for each in names or []]

    def preview(request: gr.Request, names: list[str] | None, how: str, *given: Any) -> Shown:
        check, folders = easel.turn(str(request.session_hash), given[-1]), runs(names)
        asked = parts.checked(*given[MOST:-1])
        numbers = list(map(float, given[: len(folders)]))
        yield {line: said("Merging …")}
        with easel.merged(folders, how, numbers, workspace.cache) as both:
            draft = easel.draw(asked[0], asked[1], min(parts.DRAFT, asked[2]), both, check=check)
            yield {image: workspace.picture(draft), line: said("Draft …")}
            full = workspace.picture(easel.draw(*asked, both, check=check))
        mixed = ", ".join(f"{each} × {number:g}" for each, number in zip(names or [], numbers))
        yield {image: full, line: said(f"{mixed}: nothing is written yet.")}
        yield {base: workspace.picture(easel.draw(*asked, check=check))}

    def measured(request: gr.Request, names: list[str] | None) -> Shown:
        check, folders = easel.turn(str(request.session_hash)), runs(names)
        yield {line: said("Drawing a prompt of each, with both at work …")}
        found, rows = easel.overlap(folders[0], folders[1], check), []
        for each in found.layers:
            both, cosines = (
                " and ".join(f"{n:{form}}" for n in ns) for ns, form in ((each.both, ".0%"), (each.cosine, "+.2f"))
            )
            rows.append([each.address, f"{each.span_overlap:.2f}, by chance {each.chance:.2f}", both, cosines])
        yield {table: gr.Dataframe(rows, headers=HEADS), line: said(verdict(found))}

    def written(names: list[str] | None, how: str, title: str, *given: float) -> Shown:
        folders, out = runs(names), workspace.new(title)
        numbers = ",".join(f"{weight:g}" for weight in given[: len(folders)])
        words = ["merge", *folders, "--combination-type", how, f"--weights={numbers}", "--out", out]
        yield {line: said(f"Queued, see Learn: {queue.add(words, out).command}")}

    def sliders(names: list[str] | None) -> list[Any]:
        labels = [*(names or []), *map(str, range(1, MOST + 1))][:MOST]
        return [gr.Slider(visible=n < max(2, len(names or [])), label=f"Weight of {labels[n]}") for n in range(MOST)]

    inputs = [chosen, kind, *weights, prompt, seed, steps, gr.Number(visible=False)]
    triggers = [draw.click, prompt.submit, kind.input, *(weight.input for weight in weights)]
    gr.on(triggers, parts.reporting(line, preview), inputs, [base, image, line], **parts.DRAWS)
    chosen.change(sliders, chosen, weights, **parts.QUIET)
    measure.click(parts.reporting(line, measured), chosen, [table, line], **parts.LIVE)
    write.click(parts.reporting(line, written), [chosen, kind, name, *weights], line, **parts.LIVE)
    parts.stopping(stop, easel, line)
    return {chosen: workspace.adapters}
