"""Look: what an adapter does in one image, atom by atom."""

from __future__ import annotations

import time
from typing import Any

import gradio as gr
import pandas as pd

from atomtune.analysis.heatmaps import acting_at
from atomtune.analysis.influence import difference, largest_changes
from atomtune.dialling import Settings
from atomtune.easel import Easel, Seen
from atomtune.errors import UserError
from atomtune.jobs import Queue
from atomtune.recording import AtomTrace
from atomtune.studio import parts
from atomtune.studio.parts import Shown, said
from atomtune.workspace import Workspace, enlarged

STRONGEST = 24
HEADS = ["Atom", "Change", "Name"]
CLICK = "Click a place of the image for the atoms that act there."
WHERE = ("Where it acts", "Acts on words, not on places")


def tab(easel: Easel, workspace: Workspace, queue: Queue) -> parts.Lists:
    """Build the tab. Returns its lists."""
    run, prompt, seed, steps, pressed = parts.subject(workspace)
    with gr.Row():
        draw, stop = gr.Button("Draw", variant="primary"), gr.Button("Stop")
    line = parts.status()
    with gr.Row():
        base = parts.picture("Base")
        adapted = parts.picture("Adapted", "Image with the adapter")
        with gr.Column(min_width=360):
            table = gr.Dataframe(
                headers=HEADS, label="Atoms that matter most in this image: click one", interactive=False, wrap=True,
                max_height=330, datatype="str", column_widths=["28%", "20%", "52%"],
            )  # fmt: skip
    gr.Markdown("Layers (rows) × atoms, the darker the more it matters in this image: click an atom")
    whole = parts.picture("", "Map of all atoms")
    atom = gr.Dropdown([], label="Atom", allow_custom_value=True, info="By its address, such as those of the list")
    about = parts.status()
    with gr.Row():
        heat = parts.picture(WHERE[0], "Heatmap of the atom over the image")
        influence = parts.picture("What it changes", "Influence of the atom")
        # Of a plot whose axes change with its data, gradio shows the data before.
        when = gr.BarPlot(
            x="timestep", y="share of its most", label="When it acts, from noise to image", min_width=320,
            x_label_angle=90, height=320, y_lim=[0, 1], sort="-x",
        )  # fmt: skip
    name = gr.Button("Find names for this adapter's atoms (a job of some minutes)")
    seen, asked_at, shown_at = gr.State(None, time_to_live=3600), gr.State(0.0), gr.State(0.0)  # when asked, answered

    def look(request: gr.Request, run: str, *given: Any) -> Shown:
        check, folder = easel.turn(str(request.session_hash), given[-1]), workspace.run(run)
        asked = parts.checked(*given[:-1])
        yield {line: said("Drawing with the base …")}
        yield {base: workspace.picture(easel.draw(*asked, check=check)), line: said("Drawing with the adapter …")}
        found = easel.look(*asked, folder, STRONGEST, check)
        if not found.strongest:
            raise UserError("no atom acts in this image: the adapter leaves it to the base. Try its own subject.")
        rows = [[each, f"{size:.2%}", found.names.get(each, ("–",))[0]] for each, size in found.strongest.items()]
        acts, atoms = found.trace.active_per_token, sum(map(len, found.trace.layers))
        yield {
            adapted: workspace.picture(found.image), whole: workspace.picture(found.map.image), seen: found,
            line: said(f"{found.trace.alive:,} of {atoms:,} atoms act, {acts:.1f} a token. {CLICK}"),
            table: gr.Dataframe(rows, headers=HEADS), atom: gr.Dropdown(choices=[*found.strongest], value=rows[0][0]),
            asked_at: found.drawn_at,
        }  # fmt: skip

    def show(request: gr.Request, found: Seen | None, address: str | None, asked: float, answered: float) -> Shown:
        if found is None or not address or asked == answered:
            return
        one, just_drawn = found.trace[address], asked == found.drawn_at
        check = found.check if just_drawn else easel.turn(str(request.session_hash))
        if not isinstance(one, AtomTrace):
            raise UserError(f"{address!r} is not one atom: give an address such as {found.trace.layers[0].address}[0].")
        energies = one.mean_energy_by_timestep
        shares = [each / (max(energies.values()) or 1) for each in energies.values()]
        bars = pd.DataFrame({"timestep": [f"{t:4.0f}" for t in energies], "share of its most": shares})
        (own, evidence), (places, acts) = found.names.get(address, ("no name", "")), found.where(one, easel.replay.pipe)
        what = f"{address} of {one.layer.name}: {own}; {acts}. {evidence}"
        yield {
            heat: gr.Image(places and workspace.picture(places), label=WHERE[places is None]), shown_at: asked,
            when: bars, about: said(f"{what} Drawing without it …"),
        }  # fmt: skip
        without = easel.draw(*found.asked, found.run, Settings(gains={address: 0.0}), check)
        most = float(largest_changes(found.image, without).max())
        yield {
            influence: workspace.picture(difference(found.image, without, max(most, 0.01))),
            about: said(
                f"{what} Without it the image changes by {most:.0%} at most; red: lighter with it, blue: darker."
            ),
        }

    def at_place(found: Seen | None, event: gr.SelectData) -> Shown:
        if found is None:
            return
        width, height = enlarged(found.image).size
        acts = acting_at(found.trace, event.index[0] / width, event.index[1] / height, width / height)
        if not acts:
            raise UserError("no atom acts at this place.")
        addresses = [each.address for each, _ in acts]
        listed = ", ".join(f"{each.address} ({energy:.2g})" for each, energy in acts)
        choice = gr.Dropdown(choices=addresses, value=addresses[0])
        yield {atom: choice, asked_at: time.time(), line: said(f"Here act {listed}: see them under Atom.")}

    def in_map(found: Seen | None, event: gr.SelectData) -> Shown:
        address = found and found.map.address(*event.index)
        no_atom = {line: said("There is no atom at this place of the map.")}
        yield {atom: address, asked_at: time.time()} if address else no_atom

    def in_table(event: gr.SelectData) -> tuple[str, float]:
        return event.row_value[0], time.time()

    def name_atoms(run: str) -> Shown:
        out = workspace.run(run)
        words = ["inspect", out, "--top", 4, "--base", easel.base]
        workspace.refuse_outside(run, words)
        queue.add(words, out / "report.html")
        yield {line: said("The names are looked for now, as Learn shows. Draw again when that is finished.")}

    drawing: dict[str, Any] = {"fn": parts.reporting(line, look), "inputs": [run, prompt, seed, steps, pressed]}
    outputs = [base, adapted, whole, table, atom, seen, asked_at, line]
    drawn = gr.on([draw.click, prompt.submit], **drawing, outputs=outputs, **parts.DRAWS)
    typed = atom.input(time.time, None, asked_at, **parts.QUIET)
    place = adapted.select(parts.reporting(line, at_place), seen, [atom, asked_at, line], **parts.QUIET)
    of_map = whole.select(parts.reporting(line, in_map), seen, [atom, asked_at, line], **parts.QUIET)
    of_table = table.select(in_table, None, [atom, asked_at], **parts.QUIET)
    details = [heat, influence, when, about, line, shown_at]
    for event in (drawn, typed, place, of_map, of_table):
        event.then(parts.reporting(line, show), [seen, atom, asked_at, shown_at], details, **parts.LIVE)
    name.click(parts.reporting(line, name_atoms), run, line, **parts.QUIET)
    parts.stopping(stop, easel, line)
    return {run: workspace.adapters}
