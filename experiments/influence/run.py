"""What single atoms do, and whether it adds up: `python -m experiments --only influence`

On a few calls of the denoiser for each thing: the influence of every atom that fires (the answer with it on, less with
it off), its first-order estimate, the sum of single influences against the whole block, and how much of the picture
they cover. For atoms, and for a LoRA's rank-1 components. And pictures: what the most important atoms add and take away
(Fig. 1c).
"""

from collections.abc import Callable
from pathlib import Path
from statistics import fmean, median, quantiles
from typing import Any

import torch
from torch import Tensor

from atomtune.analysis.examples import Examples
from atomtune.analysis.influence import additivity_error, influence, influences
from atomtune.analysis.locality import coverage
from atomtune.tracing import trace
from experiments.common.cells import read, spread
from experiments.common.report import CONDITIONS, HOLDS, NOT_HERE, table
from experiments.common.steering import METHODS, Config, Opened, opened, rank_agreement, setup_of

HERE = Path(__file__).parent
TOP = 24
"""Units of a layer, those of the largest influence, whose nonlinearity is reported: small ones are noise over noise."""
STRONGEST = 5
"""Atoms of each thing that are shown."""


def grid(quick: bool = False) -> dict[str, Config]:
    setup = setup_of(quick)
    methods = (*METHODS, "alone")
    cells = [Config(setup, name, ("timesteps",), method) for name in setup.names for method in methods]
    return {f"{cell.name}-{cell.method}": cell for cell in cells}


def measure(config: Config) -> dict[str, Any]:
    alone = config.method == "alone"
    it = opened(config.setup, config.name, "atoms" if alone else config.method)
    examples = it.one_picture(config.setup.timesteps)
    return measure_alone(it, examples) if alone else measure_all(it, examples)


@torch.no_grad()
def measure_all(it: Opened, examples: Examples) -> dict[str, Any]:
    """By block: how many units fire, their nonlinearity and additivity. Over all blocks: how much units cover."""
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
def measure_alone(it: Opened, examples: Examples) -> dict[str, Any]:
    """Nonlinearity and additivity of each layer's atoms with all other layers silent, so that none chooses anew."""
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


def of_atoms(out: Path) -> dict[str, Any]:
    return {name: cell for name, cell in read(out).items() if name.endswith("-atoms")}


def results(out: Path = HERE) -> str:
    found = of_atoms(out)
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
    head = (
        "layer", "atoms that fire", "nonlinearity, median", "quartiles over atoms", "median by thing",
        "error of addition", "‖influence‖",
    )  # fmt: skip
    return table(head, rows)


def section(out: Path = HERE) -> str | None:
    if not (found := of_atoms(out)):
        return None
    falls = [slope(cell) for cell in found.values()]
    verdict = HOLDS if max(falls) < -0.5 else CONDITIONS if fmean(falls) < -0.5 else NOT_HERE
    whole = [cell["additivity of all"] for cell in found.values()]
    return f"""## Influence, and appendix A.1: does nonlinearity fall with depth?

f(g_m) is the denoiser's answer as a function of one atom's gain. Influence I_m = f(1) − f(0), first order J_m = ∂f/∂g_m
at g_m = 0, nonlinearity ‖I_m − J_m‖ / ‖I_m‖, error of addition ‖Σ_m I_m − I‖ / ‖I‖ with I for the whole layer. On
{len(found)} things, one picture of each, four noises and timesteps; nonlinearity of the {TOP} atoms of largest
influence in each layer, mean ± standard deviation over the things where nothing else is said.

{results(out)}

Rank correlation of the median with depth: {spread(falls, 2)}. **A.1 {verdict}** (rule: below −0.5 for every thing). In
the last layer nothing that chooses atoms comes after; below it, a changed answer makes later layers choose other atoms,
and such a jump is no part of a slope. The curve of a LoRA, which chooses nothing, shows what is left without that.
All layers together, the influences of single atoms miss that of the adapter by {spread(whole)} of its size.

![Nonlinearity and additivity by depth](figures/steering-nonlinearity.png)

What the {STRONGEST} atoms of most energy do to the first picture of each thing, each silenced alone at the same noise:
red is light that the atom adds, blue is light that it takes away.

![Influence pictures](figures/steering-influence.png)
"""


def slope(cell: dict[str, Any]) -> float:
    """Spearman of depth with the median nonlinearity of a layer's atoms: -1 when it falls at every step."""
    values = [median(layer) for layer in cell["nonlinearity"]]
    return rank_agreement(range(len(values)), values) if len(values) > 2 else 0.0
