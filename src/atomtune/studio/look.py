"""Look: what an adapter does in one image, atom by atom."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gradio as gr
import pandas as pd
from PIL import Image

from atomtune.analysis.heatmaps import acting_at, acting_words, overlay
from atomtune.analysis.influence import difference, largest_changes
from atomtune.analysis.report import read_names
from atomtune.dialling import Settings
from atomtune.easel import Easel
from atomtune.errors import UserError
from atomtune.jobs import Queue
from atomtune.shell import command_line
from atomtune.showing import AtomMap
from atomtune.studio import parts
from atomtune.studio.parts import said
from atomtune.tracing import Trace
from atomtune.workspace import Workspace

STRONGEST = 24
HEADS = ["Atom", "Share", "Name"]


@dataclass(eq=False)
class Seen:
    """What one user looks at."""

    run: str
    asked: tuple[str, int, int]
    image: Image.Image
    trace: Trace
    map: AtomMap
    names: dict[str, tuple[str, str]]


def tab(easel: Easel, workspace: Workspace, queue: Queue) -> None:
    """Build the tab."""
    run, prompt, seed, steps = parts.subject(workspace)
    with gr.Row():
        draw = gr.Button("Draw", variant="primary")
        stop = gr.Button("Stop")
    line = parts.status()
    with gr.Row():
        base = parts.picture("Base")
        adapted = parts.picture("Adapted: click a place to list the atoms that act there", "Image with the adapter")
    table = gr.Dataframe(
        headers=HEADS, label="Atoms that matter most in this image: click one", interactive=False, wrap=True,
        max_height=320, datatype="str", column_widths=["20%", "15%", "65%"],
    )  # fmt: skip
    whole = parts.picture("Layers × atoms, the darker the more energy in this image: click an atom", "Map of all atoms")
    atom = gr.Dropdown([], label="Atom", allow_custom_value=True, info="By its address, such as L3[139]")
    about = gr.HTML(elem_classes="about", padding=False)
    with gr.Row():
        heat = parts.picture("Where it acts", "Heatmap of the atom over the image")
        influence = parts.picture("What it changes: red is lighter with it, blue darker", "Influence of the atom")
        when = gr.BarPlot(x="timestep", y="energy", label="When it acts: energy at each timestep", height=320)
    name = gr.Button("Find names for this adapter's atoms (a job of some minutes)")
    seen = gr.State(None, time_to_live=3600)

    def look(run: str, prompt: str, seed: Any, steps: Any, request: gr.Request) -> Iterator[dict[Any, Any]]:
        check, asked, folder = (
            easel.turn(str(request.session_hash)),
            parts.checked(prompt, seed, steps),
            workspace.run(run),
        )
        yield {line: said("Drawing with the base …")}
        before = easel.draw(*asked, check=check)
        yield {base: parts.enlarged(before), line: said("Drawing with the adapter …")}
        image, traced = easel.trace(*asked, folder, check)
        layers = [layer.dictionary for layer in traced.layers]
        map = AtomMap.of(layers, [layer.mean_energy for layer in traced.layers])
        found = Seen(run, asked, image, traced, map, read_names(folder))
        strongest = traced.strongest(STRONGEST)
        if not strongest:
            raise UserError("no atom acts in this image: the adapter leaves it to the base. Try its own subject.")
        total = sum(float(layer.mean_energy.sum()) for layer in traced.layers)
        rows = [[each.address, f"{each.mean_energy / total:.1%}", _name(found, each.address)] for each in strongest]
        addresses = [each.address for each in strongest]
        used = f"{traced.alive:,} of {sum(map_len(traced)):,} atoms act, {traced.active_per_token:.1f} a token."
        yield {
            adapted: parts.enlarged(image), whole: map.image, table: gr.Dataframe(rows, headers=HEADS), seen: found,
            atom: gr.Dropdown(choices=addresses, value=addresses[0]), line: said(used),
        }  # fmt: skip

    def show(found: Seen | None, address: str | None, request: gr.Request) -> Iterator[dict[Any, Any]]:
        if found is None or not address:
            return
        check = easel.turn(str(request.session_hash))
        one = found.trace[address]
        if not hasattr(one, "mean_energy_by_timestep") or not hasattr(one, "index"):
            raise UserError(f"{address!r} is not one atom: give an address such as {found.trace.layers[0].address}[0].")
        energies = one.mean_energy_by_timestep
        frame = pd.DataFrame({"timestep": [f"{t:.0f}" for t in energies], "energy": list(energies.values())})
        shown: dict[Any, Any] = {when: gr.BarPlot(frame, sort=list(frame["timestep"]))}
        words = f"fires at {one.firing_rate:.1%} of the tokens"
        try:
            shown[heat] = parts.enlarged(overlay(found.image, one.maps(magnitude=True)[0]))
        except UserError:
            acts = acting_words(one, easel.replay.pipe, found.asked[0])
            shown[heat] = None
            words += "; it acts on words, not on places: " + (", ".join(f"{w} {s:.2g}" for w, s in acts) or "none here")
        own, evidence = found.names.get(address, ("", ""))
        about_it = f"{address} of {one.layer.name}: {own or 'no name'}; {words}. {evidence}"
        yield {**shown, about: said(about_it), line: said(f"Drawing without {address} …")}
        without = easel.draw(*found.asked, workspace.run(found.run), Settings(gains={address: 0.0}), check)
        most = float(largest_changes(found.image, without).max())
        image = difference(found.image, without, max(most, 0.01))
        yield {
            influence: parts.enlarged(image),
            line: said(f"Without {address} no pixel changes by more than {most:.1%} of the range from black to white."),
        }

    def at_place(found: Seen | None, event: gr.SelectData) -> Iterator[dict[Any, Any]]:
        if found is None:
            return
        width, height = parts.enlarged(found.image).size
        acts = acting_at(found.trace, event.index[0] / width, event.index[1] / height, width / height)
        if not acts:
            raise UserError("no atom acts at this place.")
        addresses = [each.address for each, _ in acts]
        listed = ", ".join(f"{each.address} ({energy:.2g})" for each, energy in acts)
        yield {atom: gr.Dropdown(choices=addresses, value=addresses[0]), line: said(f"Here act {listed}.")}

    def in_map(found: Seen | None, event: gr.SelectData) -> Iterator[dict[Any, Any]]:
        address = found and found.map.address(*event.index)
        yield {atom: address} if address else {line: said("There is no atom at this place of the map.")}

    def in_table(event: gr.SelectData) -> Iterator[dict[Any, Any]]:
        yield {atom: event.row_value[0]}

    def stopped(request: gr.Request) -> Iterator[dict[Any, Any]]:
        easel.stop(str(request.session_hash))
        yield {line: said("Stopped.")}

    def named(run: str) -> Iterator[dict[Any, Any]]:
        out = workspace.run(run)
        if not out.is_relative_to(workspace.shown):
            raise UserError(f"{run} is not in the workspace: type `{command_line('inspect', out)}` in a terminal.")
        workspace.refuse_outside(run, words := ["inspect", out, "--top", 4, "--base", easel.base])
        queue.add(words, out / "report.html")
        queue.advance()
        yield {line: said("The names are looked for now, as Learn shows. Draw again when that is finished.")}

    live: dict[str, Any] = {"concurrency_limit": None, "trigger_mode": "multiple", "show_progress": "minimal"}
    outputs = [base, adapted, whole, table, atom, seen, line]
    gr.on([draw.click, prompt.submit], parts.reporting(line, look), [run, prompt, seed, steps], outputs, **live)
    atom.change(parts.reporting(line, show), [seen, atom], [heat, influence, when, about, line], **live)
    adapted.select(parts.reporting(line, at_place), seen, [atom, line], **live)
    whole.select(parts.reporting(line, in_map), seen, [atom, line], **live)
    table.select(parts.reporting(line, in_table), None, atom, **live)
    stop.click(parts.reporting(line, stopped), None, line, **live)
    name.click(parts.reporting(line, named), run, line, **live)


def map_len(traced: Trace) -> list[int]:
    return [len(layer) for layer in traced.layers]


def _name(found: Seen, address: str) -> str:
    return found.names.get(address, ("–", ""))[0] or "–"
