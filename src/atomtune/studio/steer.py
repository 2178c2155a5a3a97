"""Steer: turn the dials of an adapter and see at once what they do."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import gradio as gr

from atomtune.dialling import Settings
from atomtune.easel import Easel
from atomtune.errors import UserError
from atomtune.files import write_text
from atomtune.jobs import Queue
from atomtune.studio import parts
from atomtune.studio.parts import said
from atomtune.workspace import Workspace

STRIP = 4
TIMES = {"early": 1000.0, "middle": 500.0, "late": 0.0}
Values = dict[str, Any]
"""What the controls say: run, prompt, seed, steps, density, floor, keep, gains, early, middle, late."""


def tab(easel: Easel, workspace: Workspace, queue: Queue) -> None:
    """Build the tab."""
    run, prompt, seed, steps = parts.subject(workspace)
    gains, before, strip = gr.State({}), gr.State([]), gr.State([])
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            density = gr.Slider(
                0.001, 1, 0.04, step=0.001, label="Density", info="Share of the atoms one token may use"
            )
            floor = gr.Slider(0, 1, 0, step=0.0005, label="Floor", info="Silent below this share of other prompts")
            keep = gr.Slider(1, 100, 100, step=1, label="Atoms kept", info="Those of the most energy")
            with gr.Group():
                atom = gr.Dropdown(
                    [], label="Atom or layer", allow_custom_value=True, info="Strongest first; L3, L3[7]"
                )
                gain = gr.Slider(-2, 2, 1, step=0.05, label="Its gain", info="0: silent, 1: as trained")
            turned = gr.HTML(said("All gains are 1."), padding=False)
            with gr.Row():
                late: dict[str, gr.Slider] = {
                    name: gr.Slider(0, 2, 1, step=0.05, label=f"Strength {name}", min_width=120) for name in TIMES
                }
        with gr.Column(scale=3, min_width=300):
            with gr.Row():
                base = parts.picture("Base")
                image = parts.picture("With these settings")
            line = parts.status()
            with gr.Row():
                draw = gr.Button("Draw", variant="primary")
                stop, undo, reset = gr.Button("Stop"), gr.Button("Undo"), gr.Button("As trained")
                keep_it = gr.Button("Add to strip")
            gallery = gr.Gallery(
                label="Strip of up to four settings: click one to go back to it", columns=STRIP, height=220,
                format="png",
                interactive=False, allow_preview=False, object_fit="contain",
            )  # fmt: skip
    with gr.Accordion("Keep it, or do the same elsewhere", open=False):
        with gr.Row():
            name = gr.Textbox("calmer", label="Name", info="Of the preset, or of the pruned copy")
            save, prune = gr.Button("Save as preset"), gr.Button("Export pruned adapter")
        command = gr.Code(label="Equivalent command line (saved as preset first)", language="shell", interactive=False)
        python = gr.Code(label="Equivalent Python", language="python", interactive=False)

    dials = [density, floor, keep, gains, *late.values()]
    controls = [run, prompt, seed, steps, *dials]
    names = ["run", "prompt", "seed", "steps", "density", "floor", "keep", "gains", *TIMES]

    def opened(name: str) -> Iterator[dict[Any, Any]]:
        """The dials of another adapter, as it was trained."""
        with easel.lock:
            board = easel.board(workspace.run(name))
            measured = any(dictionary.floor.measured for dictionary in board.dictionaries)
            try:
                scores = [float(score) for layer in board.mean_energy() for score in layer]
            except UserError:
                scores = [0.0] * len(board)
            ranked = sorted(zip(scores, [each.address for each in board]), key=lambda pair: -pair[0])
            count, trained, level = len(board), board.density, board.floor
        choices = [address for _, address in ranked[:40]]
        yield {
            density: gr.Slider(value=round(trained, 3)), gains: {}, turned: said("All gains are 1."),
            floor: gr.Slider(value=level, interactive=measured), keep: gr.Slider(maximum=count, value=count),
            atom: gr.Dropdown(choices=choices, value=choices[0]), gain: 1, **dict.fromkeys(late.values(), 1),
        }  # fmt: skip

    def settings(values: Values) -> Settings:
        """What differs from training."""
        with easel.lock:
            board = easel.board(workspace.run(values["run"]))
            count, trained, level = len(board), board.density, board.floor
        points = {time: values[part] for part, time in TIMES.items()}
        return Settings(
            None if abs(values["density"] - trained) < 6e-4 else values["density"],
            None if abs(values["floor"] - level) < 6e-4 else values["floor"],
            None if values["keep"] >= count else int(values["keep"]),
            values["gains"],
            points if set(points.values()) != {1} else {},
        )

    def redraw(request: gr.Request, *given: Any) -> Iterator[dict[Any, Any]]:
        """A draft at once, then the image; an older drawing of the same user ends."""
        check = easel.turn(str(request.session_hash))
        values, history = dict(zip(names, given)), given[len(names)]
        asked, folder = parts.checked(*given[1:4]), workspace.run(values["run"])
        started, now, few = time.perf_counter(), settings(values), min(parts.DRAFT, given[3])
        draft = easel.draw(asked[0], asked[1], few, folder, now, check)
        yield {image: parts.enlarged(draft), line: said(f"Draft of {few} steps …")}
        ran = easel.replay.computed
        full = easel.draw(*asked, folder, now, check)
        took = f"{time.perf_counter() - started:.1f} s, {easel.replay.computed - ran} of {asked[2]} steps were new"
        yield {
            image: parts.enlarged(full), before: [*history[-49:], values], line: said(f"Drawn: {took}."),
            python: now.python(folder, *asked, base=easel.base), command: "",
        }  # fmt: skip
        yield {base: parts.enlarged(easel.draw(*asked, check=check))}

    def turn(address: str, value: float, own: dict[str, float]) -> dict[str, float]:
        return {key: each for key, each in {**own, address: value}.items() if each != 1}

    def list_turned(own: dict[str, float]) -> str:
        return said(
            "Gains: " + ", ".join(f"{key} × {each:g}" for key, each in own.items()) if own else "All gains are 1."
        )

    def back(history: list[Values]) -> Iterator[dict[Any, Any]]:
        if len(history) < 2:
            raise UserError("there is nothing to undo.")
        yield restored(history[-2]) | {before: history[:-2]}

    def restored(values: Values) -> dict[Any, Any]:
        return dict(zip(controls, (values[name] for name in names))) | {turned: list_turned(values["gains"])}

    def add(shown: Any, history: list[Values], strip_now: list[Any]) -> Iterator[dict[Any, Any]]:
        if shown is None or not history:
            raise UserError("there is no image yet: draw first.")
        kept = [*strip_now, (shown, history[-1])][-STRIP:]
        yield {strip: kept, gallery: [(each, _words(values)) for each, values in kept]}

    def chosen(strip_now: list[Any], event: gr.SelectData) -> Iterator[dict[Any, Any]]:
        yield restored(strip_now[event.index][1])

    def saved(title: str, *given: Any) -> Iterator[dict[Any, Any]]:
        values, asked = dict(zip(names, given)), parts.checked(*given[1:4])
        folder, now, file = workspace.run(values["run"]), settings(values), workspace.preset_file(title)
        if file.exists() and not file.read_text(encoding="utf-8").startswith("{"):
            raise UserError(f"{file} is not a preset: choose another name.")
        write_text(file, json.dumps(easel.preset(folder, now), indent=1) + "\n")
        yield {
            command: now.command(folder, *asked, base=easel.base, preset=file),
            python: now.python(folder, *asked, base=easel.base),
            line: said(f"Saved as {file}."),
        }

    def exported(title: str, run_name: str, count: int) -> Iterator[dict[Any, Any]]:
        folder, out = workspace.run(run_name), workspace.new(title)
        words = ["prune", folder, "--keep", int(count), "--by", "energy", "--out", out, "--base", easel.base]
        workspace.refuse_outside(run_name, words)
        job = queue.add(words, out)
        queue.advance()
        yield {line: said(f"Queued, and shown under Learn: {job.command}. Gains and density stay in presets.")}

    def stopped(request: gr.Request) -> Iterator[dict[Any, Any]]:
        easel.stop(str(request.session_hash))
        yield {line: said("Stopped.")}

    live: dict[str, Any] = {"concurrency_limit": None, "trigger_mode": "multiple", "show_progress": "minimal"}
    quiet: dict[str, Any] = live | {"show_progress": "hidden"}
    report = parts.reporting
    drawing = {
        "fn": report(line, redraw), "inputs": [*controls, before],
        "outputs": [image, base, before, line, python, command], **live,
    }  # fmt: skip
    gr.on([draw.click, prompt.submit, *(each.input for each in (density, floor, keep, *late.values()))], **drawing)
    gain.input(turn, [atom, gain, gains], gains, **quiet).then(list_turned, gains, turned, **quiet).then(**drawing)
    atom.change(lambda address, own: own.get(address, 1), [atom, gains], gain, **quiet)
    opening = [density, floor, keep, atom, gain, gains, turned, *late.values(), line]
    gr.on([run.change, reset.click], report(line, opened), run, opening, **quiet)
    undo.click(report(line, back), before, [*controls, turned, before, line], **quiet).then(**drawing)
    gallery.select(report(line, chosen), strip, [*controls, turned, line], **quiet).then(**drawing)
    keep_it.click(report(line, add), [image, before, strip], [strip, gallery, line], **quiet)
    save.click(report(line, saved), [name, *controls], [command, python, line], **quiet)
    prune.click(report(line, exported), [name, run, keep], line, **quiet)
    stop.click(report(line, stopped), None, line, **quiet)
    gr.on(None, report(line, opened), run, opening, **quiet)


def _words(values: Values) -> str:
    """A caption of a setting."""
    gains = "".join(f", {address} × {gain:g}" for address, gain in values["gains"].items())
    parts_ = [values[name] for name in TIMES]
    strength = "" if set(parts_) == {1} else ", strength " + "/".join(f"{each:g}" for each in parts_)
    return f"density {values['density']:g}, floor {values['floor']:g}, {values['keep']:,} atoms{gains}{strength}"
