"""Steer: turn the dials of an adapter and see at once what they do."""

from __future__ import annotations

import time
from typing import Any

import gradio as gr

from atomtune.dialling import Settings, Trained
from atomtune.easel import Easel
from atomtune.errors import UserError
from atomtune.jobs import Queue
from atomtune.studio import parts
from atomtune.studio.parts import Shown, said, slider
from atomtune.workspace import Workspace

STRIP = 4
TIMES = {"early": 1000.0, "middle": 500.0, "late": 0.0}
ALL_ONE = said("All gains are 1.")


def tab(easel: Easel, workspace: Workspace, queue: Queue) -> tuple[Any, Any, Any]:
    """Build the tab. Returns the handler that sets its dials when the page opens, with its inputs and outputs."""
    run, prompt, seed, steps, pressed = parts.subject(workspace)
    gains, before, strip, last = gr.State({}), gr.State([]), gr.State([]), gr.State(None)
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            density = slider(0, 1, 0.04, step=0.001, label="Density", info="Share of atoms one token may use")
            floor = slider(0, 1, 0, step=0.0005, label="Floor", info="Silence below what atoms do on other prompts")
            keep = slider(1, 100, 100, step=1, label="Atoms kept", info="The strongest")
            with gr.Group():
                hint: dict[str, Any] = {"info": "Layers, then atoms, the strongest first", "allow_custom_value": True}
                atom = gr.Dropdown([], label="Atom or layer", **hint)
                gain = slider(-2, 2, 1, step=0.05, label="Its gain", info="0: silent, 1: as trained")
            turned = gr.HTML(ALL_ONE, padding=False, elem_classes="note")
            with gr.Group():
                strengths = [slider(0, 2, 1, step=0.05, label=f"Strength, {when} steps") for when in TIMES]
        with gr.Column(scale=3, min_width=300):
            with gr.Row():
                base, image = parts.picture("Base"), parts.picture("With these settings")
            line = parts.status()
            with gr.Row():
                draw, stop = gr.Button("Draw", variant="primary", min_width=80), gr.Button("Stop", min_width=80)
                undo, reset = gr.Button("Undo", min_width=80), gr.Button("Reset", min_width=80)
                keep_it = gr.Button("Add to strip", min_width=80)
            gallery = gr.Gallery(
                label="Strip of the last four settings: click one to go back to it", columns=STRIP, height=280,
                interactive=False, allow_preview=False, object_fit="contain",
            )  # fmt: skip
    with gr.Accordion("Keep it, or do the same elsewhere", open=False):
        with gr.Row():
            name = gr.Textbox("calmer", label="Name", info="Of the preset, or of the pruned copy")
            save, prune = gr.Button("Save as preset"), gr.Button("Export pruned adapter")
        command = gr.Code(label="Command line: save as preset first", language="shell", interactive=False, lines=1)
        python = gr.Code(label="Equivalent Python", language="python", interactive=False)
    dials = [density, floor, keep, gains, *strengths]
    controls = [run, prompt, seed, steps, *dials]

    def opened(name: str) -> Shown:
        """The dials of an adapter as it was trained."""
        own = easel.trained(workspace.run(name))
        most = min(1.0, round(4 * own.density, 3))
        yield {
            density: gr.Slider(value=round(own.density, 3), maximum=most), gains: {}, turned: ALL_ONE, gain: 1,
            floor: gr.Slider(value=own.floor, interactive=own.measured),
            keep: gr.Slider(maximum=own.atoms, value=own.atoms),
            atom: gr.Dropdown(choices=[*own.layers, *own.strongest], value=own.strongest[0]),
            **dict.fromkeys(strengths, 1),
        }  # fmt: skip

    def settings(own: Trained, density: float, floor: float, keep: float, gains: Any, *strengths: float) -> Settings:
        return own.settings(density, floor, keep, gains, dict(zip(TIMES.values(), strengths)))

    def redraw(request: gr.Request, *given: Any) -> Shown:
        """A draft at once, then the image; an older drawing of the same user ends."""
        *values, history, asked_at = given
        check, folder = easel.turn(str(request.session_hash), asked_at), workspace.run(given[0])
        asked = parts.checked(*given[1:4])
        started, few = time.perf_counter(), min(parts.DRAFT, given[3])
        now = settings(easel.trained(folder), *values[4:])
        draft = easel.draw(asked[0], asked[1], few, folder, now, check)
        yield {image: workspace.picture(draft), line: said(f"Draft of {few} steps …")}
        full = easel.draw(*asked, folder, now, check)
        yield {
            image: workspace.picture(full), last: full, before: [*history[-49:], (values, str(now))],
            line: said(f"Drawn in {time.perf_counter() - started:.1f} s: {now}."),
            python: now.python(folder, *asked, base=easel.base), command: "",
        }  # fmt: skip
        yield {base: workspace.picture(easel.draw(*asked, check=check))}

    def turn(run: str, address: str, value: float, own: dict[str, float]) -> tuple[dict[str, float], str]:
        try:
            own = easel.turned(workspace.run(run), own, address, value)
            return own, listed(own)
        except UserError as error:
            return own, said(str(error), wrong=True)

    def listed(own: dict[str, float]) -> str:
        return said("Gains: " + ", ".join(f"{key} × {each:g}" for key, each in own.items())) if own else ALL_ONE

    def restored(values: list[Any], address: str) -> dict[Any, Any]:
        return dict(zip(controls, values)) | {turned: listed(values[7]), gain: values[7].get(address, 1)}

    def back(history: list[Any], address: str) -> Shown:
        if len(history) < 2:
            raise UserError("there is nothing to undo.")
        yield restored(history[-2][0], address) | {before: history[:-2]}

    def add(full: Any, history: list[Any], kept: list[Any]) -> Shown:
        if full is None or not history:
            raise UserError("there is no image yet: draw first.")
        kept = [*kept, (full, *history[-1])][-STRIP:]
        yield {strip: kept, gallery: [(workspace.picture(each), words) for each, _, words in kept]}

    def chosen(kept: list[Any], address: str, event: gr.SelectData) -> Shown:
        yield restored(kept[event.index][1], address)

    def saved(title: str, run: str, *given: Any) -> Shown:
        folder, asked = workspace.run(run), parts.checked(*given[:3])
        now = settings(easel.trained(folder), *given[3:])
        file = workspace.save_preset(title, easel.preset(folder, now))
        yield {
            command: now.command(folder, *asked, base=easel.base, preset=file), line: said(f"Saved as {file}."),
            python: now.python(folder, *asked, base=easel.base),
        }  # fmt: skip

    def exported(title: str, run: str, count: int) -> Shown:
        folder, out = workspace.run(run), workspace.new(title)
        words = ["prune", folder, "--keep", int(count), "--by", "energy", "--out", out, "--base", easel.base]
        workspace.refuse_outside(run, words)
        yield {line: said(f"Queued, see Learn: {queue.add(words, out).command}. Gains and density stay in presets.")}

    report, quiet = parts.reporting, parts.QUIET
    pictures = [image, base, last, before, line, python, command]
    drawing: dict[str, Any] = {"fn": report(line, redraw), "inputs": [*controls, before, pressed], "outputs": pictures}
    gr.on([draw.click, prompt.submit, *(dial.input for dial in dials if dial is not gains)], **drawing, **parts.DRAWS)
    gain.input(turn, [run, atom, gain, gains], [gains, turned], **quiet).then(**drawing, **parts.DRAWS)
    atom.change(lambda address, own: own.get(address, 1), [atom, gains], gain, **quiet)
    opening = [atom, gain, turned, *dials, line]
    run.input(report(line, opened), run, opening, **quiet)
    reset.click(report(line, opened), run, opening, **quiet).then(**drawing, **parts.DRAWS)
    back_to = [*controls, turned, gain, line]
    undo.click(report(line, back), [before, atom], [*back_to, before], **quiet).then(**drawing, **parts.DRAWS)
    gallery.select(report(line, chosen), [strip, atom], back_to, **quiet).then(**drawing, **parts.DRAWS)
    keep_it.click(report(line, add), [last, before, strip], [strip, gallery, line], **quiet)
    save.click(report(line, saved), [name, *controls], [command, python, line], **quiet)
    prune.click(report(line, exported), [name, run, keep], line, **quiet)
    parts.stopping(stop, easel, line)
    return report(line, opened), run, opening
