"""How few atoms? `python -m experiments.steering.prune`

Both readings of the paper's Fig. 3: the best atoms over the whole model, or in each layer, by energy and at random, of
adapters trained with the shipped recipe. Fidelity and alignment of what is left, without further training.
"""

from functools import partial
from typing import Any

import numpy as np
import torch

import atomtune
from atomtune.sampling import grid, save_png
from experiments import subjects
from experiments.cells import spread
from experiments.figures import BLUE, GREY, ORANGE, plt, save
from experiments.report import ROOT, table
from experiments.steering.common import FULL, Place, Setup, main, opened, run_cell, score_as_it_is

COUNTS = (4, 12, 40, 120, 400)
STRIP = ROOT / "docs" / "how-to" / "prune.png"
RANKINGS = {"energy": "by energy", "random": "at random"}


def measure(setup: Setup, name: str) -> dict[str, Any]:
    """Scores of the base, of the whole adapter, and of what is left of it."""
    it = opened(setup, name)
    generator = torch.Generator().manual_seed(0)
    scores = {"energy": None, "random": [torch.rand(d.num_atoms, generator=generator) for d in it.board.dictionaries]}
    most = min(d.num_atoms for d in it.board.dictionaries)
    values: dict[str, Any] = {"atoms": len(it.board), "layers": len(it.board.dictionaries)}
    values["all"] = score_as_it_is(it, setup)
    for by, ranking in scores.items():
        for reading, counts in {"model": COUNTS, "layer": [count for count in COUNTS if count < most]}.items():
            values[f"{reading}-{by}"] = left = []
            for count in counts:
                it.board.reset()
                it.board.keep(count, by=ranking, per_layer=reading == "layer")
                left.append(score_as_it_is(it, setup) | {"count": count, "kept": len(it.board.kept)})
    it.board.reset()
    with it.board.muted(*(f"L{layer}" for layer in range(len(it.board.dictionaries)))):
        values["base"] = score_as_it_is(it, setup)
    return values


def run(setup: Setup = FULL) -> None:
    for name in setup.names:
        run_cell(setup, "prune", name, ("num", "steps"), partial(measure, setup, name))
    if setup == FULL:
        strip(setup)


def strip(setup: Setup) -> None:
    """The first prompt of each thing with all atoms, and with the best over the model."""
    rows = []
    for name in setup.names:
        it, prompt = opened(setup, name), subjects.task(name).prompts[0]
        rows.append([])
        for count in (len(it.board), *sorted(COUNTS, reverse=True)):
            it.board.keep(count)
            rows[-1].append(atomtune.generate(it.pipe, prompt)[0].image)
    columns = ("all atoms", *(f"{count} atoms" for count in sorted(COUNTS, reverse=True)))
    save_png(grid(rows, [subjects.task(name).prompts[0] for name in setup.names], columns), STRIP)


def shares(found: dict[str, Any], key: str) -> np.ndarray:
    """[things, counts]: the part of the fidelity gain that is left."""
    return np.array(
        [
            [
                (left["fidelity"] - c["base"]["fidelity"]) / (c["all"]["fidelity"] - c["base"]["fidelity"])
                for left in c[key]
            ]
            for c in found.values()
        ]
    )


def section(place: Place) -> str | None:
    if not (found := place.cells("prune")):
        return None
    first = next(iter(found.values()))
    rows = []
    for reading, title in {"model": "over the model", "layer": "in each layer"}.items():
        for column, left in enumerate(first[f"{reading}-energy"]):
            cells = [title, f"{left['count']}", f"{left['kept']:,}"]
            for by in RANKINGS:
                cells.append(spread(100 * shares(found, f"{reading}-{by}")[:, column], 0))
                cells.append(spread([c[f"{reading}-{by}"][column]["alignment"] for c in found.values()], 2))
            rows.append(cells)
    head = (
        "kept",
        "number",
        "atoms in all",
        "by energy: gain left, %",
        "alignment",
        "random: gain left, %",
        "alignment",
    )
    whole, base = ([c[kind] for c in found.values()] for kind in ("all", "base"))
    return f"""## How few atoms?

The shipped recipe trains {first["atoms"]:,} atoms in {first["layers"]} layers. All of them: fidelity
{spread([s["fidelity"] for s in whole], 2)}, alignment {spread([s["alignment"] for s in whole], 2)}; the base:
{spread([s["fidelity"] for s in base], 2)} and {spread([s["alignment"] for s in base], 2)}. What is left of the gain in
fidelity when the others are dropped, with no further training, mean ± standard deviation over {len(found)} things:

{table(head, rows)}

![Fidelity and alignment against the number of atoms]({place.figure("prune").relative_to(place.docs)})
"""


def figure(place: Place) -> None:
    if not (found := place.cells("prune")):
        return
    drawn, axes = plt.subplots(1, 2, figsize=(11, 4))
    styles = {"model": ("-", "o", "over the model"), "layer": (":", "s", "in each layer")}
    for axis, score in zip(axes, ("fidelity", "alignment")):
        for (by, label), colour in zip(RANKINGS.items(), (BLUE, ORANGE)):
            for reading, (line, mark, title) in styles.items():
                kept = [left["kept"] for left in next(iter(found.values()))[f"{reading}-{by}"]]
                values = np.array([[left[score] for left in c[f"{reading}-{by}"]] for c in found.values()])
                axis.plot(kept, values.mean(0), line, marker=mark, color=colour, label=f"{label}, {title}")
                axis.vlines(kept, values.min(0), values.max(0), color=colour, linewidth=2, alpha=0.25)
        for kind, text in {"all": "all atoms", "base": "base"}.items():
            level = np.mean([c[kind][score] for c in found.values()])
            axis.axhline(level, color=GREY, linewidth=0.8)
            spot = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
            axis.annotate(text, (0, level), (2, 2), color=GREY, fontsize=11, **spot)
        axis.set(xscale="log", xlabel="atoms kept, in all", title=score)
        axis.set_xticks((4, 12, 40, 120, 400, 1000), ["4", "12", "40", "120", "400", "1000"])
        axis.minorticks_off()
    axes[0].legend(fontsize=10, loc="upper left", bbox_to_anchor=(0, 0.87), frameon=True, edgecolor="none")
    save(drawn, place.figure("prune"))


if __name__ == "__main__":
    main(run, figure)
