"""What single atoms do, and whether it adds up: `python -m experiments.steering.influence`

On a few calls of the denoiser for each thing: the influence of every atom that fires (the answer with it on, less with
it off), its first-order estimate, the sum of single influences against the whole block, and how much of the picture
they cover. For atoms, and for a LoRA's rank-1 components. And pictures: what the most important atoms add and take away
(Fig. 1c).
"""

from collections.abc import Callable
from functools import partial
from statistics import fmean, median, quantiles
from typing import Any

import numpy as np
import torch
from torch import Tensor

import atomtune
from atomtune.analysis.importance import importance
from atomtune.analysis.influence import additivity_error, influence, influence_image, influences
from atomtune.analysis.locality import coverage
from atomtune.sampling import grid, save_png
from atomtune.tracing import trace
from experiments import subjects
from experiments.cells import spread
from experiments.figures import BLUE, GREEN, GREY, ORANGE, plt, save
from experiments.report import CONDITIONS, HOLDS, NOT_HERE, table
from experiments.steering.common import (
    FULL,
    METHODS,
    Opened,
    Place,
    Setup,
    main,
    opened,
    place,
    rank_agreement,
    run_cell,
)

TOP = 24
"""Units of a layer, those of the largest influence, whose nonlinearity is reported: small ones are noise over noise."""
PICTURES = 5
"""Atoms of each thing that are shown."""


@torch.no_grad()
def measure(setup: Setup, name: str, method: str) -> dict[str, Any]:
    """By block: how many units fire, their nonlinearity and additivity. Over all blocks: how much units cover."""
    it = opened(setup, name, method)
    examples = it.one_picture(setup.timesteps)
    values: dict[str, Any] = {"units": [], "nonlinearity": [], "additivity": [], "size": []}
    sizes, covered, singles = [], [], torch.zeros(())
    for addresses in blocks(it):
        found = [influences(it.board, address, examples.outputs) for address in addresses]
        size = torch.cat([each.size for each in found])
        parts = torch.cat([each.full for each in found])
        largest = size.topk(min(TOP, len(size))).indices
        values["units"].append(len(size))
        values["nonlinearity"].append(torch.cat([each.nonlinearity for each in found])[largest])
        values["additivity"].append(additivity_error(parts, influence(it.board, examples.outputs, *addresses)))
        values["size"].append(float(size.mean()))
        singles = singles + parts.sum(0)
        where = parts.square().sum(2).sqrt().flatten(2)  # [units, examples, places]
        covered.append(coverage(where).flatten())
        sizes.append(where.square().sum(-1).sqrt().flatten())
    everything = influence(it.board, examples.outputs, *(address for block in blocks(it) for address in block))
    values["additivity of all"] = additivity_error(singles[None], everything)
    values["influence coverage"] = _weighted(torch.cat(covered), torch.cat(sizes))
    values["map coverage"] = map_coverage(it, examples.outputs)
    return values


@torch.no_grad()
def measure_alone(setup: Setup, name: str) -> dict[str, Any]:
    """Nonlinearity and additivity of each layer's atoms with all other layers silent, so that none chooses anew."""
    it = opened(setup, name)
    examples = it.one_picture(setup.timesteps)
    values: dict[str, Any] = {"nonlinearity": [], "additivity": []}
    layers = [address for block in blocks(it) for address in block]
    for address in layers:
        with it.board.muted(*(other for other in layers if other != address)):
            found = influences(it.board, address, examples.outputs)
            whole = influence(it.board, examples.outputs, address)
        values["nonlinearity"].append(found.nonlinearity[found.size.topk(min(TOP, len(found.rows))).indices])
        values["additivity"].append(additivity_error(found.full, whole))
    return values


def blocks(it: Opened) -> list[list[str]]:
    """Addresses by transformer block: an attention atom adapter has one layer in each, a LoRA four."""
    found: dict[str, list[str]] = {}
    for name, module in it.board.model.named_modules():
        for layer, dictionary in zip(it.board.layers, it.board.dictionaries):
            if module is layer:
                found.setdefault(name.partition(".attn")[0], []).append(f"L{int(dictionary.layer)}")
    return list(found.values())


def map_coverage(it: Opened, call: Callable[[], Any]) -> float:
    """Share of the tokens that a unit's map covers, mean over units and examples weighted by their energy."""
    with trace(it.board.model, codes=True) as seen:
        call()
    covered, weights = [], []
    for layer in seen.layers:
        maps = layer.maps(magnitude=True).transpose(1, 2)  # [samples, atoms, tokens]
        covered.append(coverage(maps).nan_to_num().flatten())
        weights.append((maps.mean(-1) * layer.dictionary.decoder.weight.norm(dim=1)).flatten())
    return _weighted(torch.cat(covered), torch.cat(weights))


def _weighted(values: Tensor, weights: Tensor) -> float:
    return float((values.nan_to_num() * weights).sum() / weights.sum())


def run(setup: Setup = FULL) -> None:
    for name in setup.names:
        for method in METHODS:
            compute = partial(measure, setup, name, method)
            run_cell(setup, "influence", f"{name}-{method}", ("timesteps",), compute)
    for name in setup.names:
        run_cell(setup, "influence", f"{name}-alone", ("timesteps",), partial(measure_alone, setup, name))
    pictures(setup, place(setup))


def pictures(setup: Setup, where: Place) -> None:
    """The picture of each thing, and what its most important atoms add (red) and take away (blue)."""
    if (file := where.figure("influence")).is_file() and setup == FULL:
        return
    rows, labels = [], []
    for name in setup.names:
        it = opened(setup, name)
        prompt = subjects.task(name).prompts[0]
        with trace(it.board.model) as seen:
            atomtune.generate(it.pipe, prompt, steps=setup.steps)
        scores = torch.cat(importance(it.board, traced=seen))
        atoms = list(it.board)
        strongest = [atoms[index].address for index in scores.topk(PICTURES).indices.tolist()]
        drawn = [influence_image(it.pipe, address, prompt, steps=setup.steps) for address in strongest]
        rows.append([drawn[0][0], *(difference for _, _, difference in drawn)])
        labels.append(f"{name}: {', '.join(strongest)}")
    columns = ("all on", *(f"atom {n + 1} by energy" for n in range(PICTURES)))
    save_png(grid(rows, labels, columns), file)


def section(place: Place) -> str | None:
    found = {label: cell for label, cell in place.cells("influence").items() if label.endswith("-atoms")}
    if not found:
        return None
    layers = list(zip(*(cell["nonlinearity"] for cell in found.values())))
    rows = []
    for number, things in enumerate(layers):
        values = sorted(value for thing in things for value in thing)
        low, _, high = quantiles(values, n=4)
        size, add, units = ([cell[key][number] for cell in found.values()] for key in ("size", "additivity", "units"))
        rows.append((
            f"L{number}", f"{fmean(units):.0f}", f"{median(values):.3f}", f"{low:.3f} to {high:.3f}",
            spread([median(thing) for thing in things]), spread(add), spread(size, 2),
        ))  # fmt: skip
    falls = [slope(cell) for cell in found.values()]
    verdict = HOLDS if max(falls) < -0.5 else CONDITIONS if fmean(falls) < -0.5 else NOT_HERE
    whole = [cell["additivity of all"] for cell in found.values()]
    head = (
        "layer", "atoms that fire", "nonlinearity, median", "quartiles over atoms", "median by thing",
        "error of addition", "‖influence‖",
    )  # fmt: skip
    return f"""## Influence, and appendix A.1: does nonlinearity fall with depth?

f(g_m) is the denoiser's answer as a function of one atom's gain. Influence I_m = f(1) − f(0), first order J_m = ∂f/∂g_m
at g_m = 0, nonlinearity ‖I_m − J_m‖ / ‖I_m‖, error of addition ‖Σ_m I_m − I‖ / ‖I‖ with I for the whole layer. On
{len(found)} things, one picture of each, four noises and timesteps; nonlinearity of the {TOP} atoms of largest
influence in each layer, mean ± standard deviation over the things where nothing else is said.

{table(head, rows)}

Rank correlation of the median with depth: {spread(falls, 2)}. **A.1 {verdict}** (rule: below −0.5 for every thing). In
the last layer nothing that chooses atoms comes after; below it, a changed answer makes later layers choose other atoms,
and such a jump is no part of a slope. The curve of a LoRA, which chooses nothing, shows what is left without that.
All layers together, the influences of single atoms miss that of the adapter by {spread(whole)} of its size.

![Nonlinearity and additivity by depth]({place.figure("nonlinearity").relative_to(place.docs)})

What the {PICTURES} atoms of most energy do to the first picture of each thing, each silenced alone at the same noise:
red is light that the atom adds, blue is light that it takes away.

![Influence pictures]({place.figure("influence").relative_to(place.docs)})
"""


def slope(cell: dict[str, Any]) -> float:
    """Spearman of depth with the median nonlinearity of a layer's atoms: -1 when it falls at every step."""
    values = [median(layer) for layer in cell["nonlinearity"]]
    return rank_agreement(range(len(values)), values) if len(values) > 2 else 0.0


def figure(place: Place) -> None:
    if not (found := place.cells("influence")):
        return
    drawn, axes = plt.subplots(1, 2, figsize=(10, 4))
    for (method, name), colour, shift in zip(METHODS.items(), (BLUE, ORANGE, GREEN), (-0.12, 0, 0.12)):
        mine = [cell for label, cell in found.items() if label.endswith(f"-{method}")]
        layers = [[value for thing in things for value in thing] for things in zip(*(c["nonlinearity"] for c in mine))]
        places = np.arange(len(layers)) + shift
        quarters = np.array([quantiles(layer, n=4) for layer in layers])
        axes[0].plot(places, quarters[:, 1], color=colour, marker="o", markersize=4, label=name)
        axes[0].vlines(places, quarters[:, 0], quarters[:, 2], color=colour, linewidth=2, alpha=0.5)
        added = np.array([cell["additivity"] for cell in mine])
        axes[1].plot(places, added.mean(0), color=colour, marker="o", markersize=4, label=name)
        axes[1].vlines(places, added.min(0), added.max(0), color=colour, linewidth=2, alpha=0.5)
    axes[0].set_ylabel("nonlinearity ‖I − J‖ / ‖I‖")
    axes[0].set_title("median and quartiles over units and things", fontsize=10)
    axes[1].set_ylabel("error of addition ‖ΣI − I‖ / ‖I‖")
    axes[1].set_title("mean and range over things", fontsize=10)
    for axis in axes:
        axis.set_xlabel("block (0: the shallowest)")
        axis.set_ylim(bottom=0)
        axis.axhline(1, color=GREY, linewidth=0.8, linestyle=":")
    axes[1].legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    save(drawn, place.figure("nonlinearity"))


if __name__ == "__main__":
    main(run, figure)
