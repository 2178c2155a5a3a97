"""Does a second run find the same atoms? `python -m experiments --only stability`

Two seeds (other W_s at the start, other noise, another order) on each of the six things. Both adapters are run on the
same examples; atoms that fire in both runs are matched layer by layer (`atomtune.analysis.matching`). Beside them:
another thing learnt with the second seed, and chance, the second run with directions and maps paired anew at random.
"""

from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from atomtune.analysis.examples import Examples
from atomtune.analysis.matching import likeness, match
from atomtune.tracing import trace
from experiments.common.cells import read, spread
from experiments.common.report import table
from experiments.common.steering import Config, Opened, opened, setup_of

HERE = Path(__file__).parent
MATCHED = 0.5
"""Likeness from which a pair counts as matched. An atom and its copy turned by 45° in direction alone have 0.71."""
TOP = 40
KINDS = {"same": "same thing, other seed", "other": "other thing, other seed", "chance": "same thing, paired at random"}


def grid(quick: bool = False) -> dict[str, Config]:
    setup = setup_of(quick)
    return {name: Config(setup, name, ("draws", "names")) for name in setup.names}


def measure(config: Config) -> dict[str, Any]:
    """For each kind of pairing: likeness and energy of every atom of the first run that was given a partner."""
    setup, name = config.setup, config.name
    first = opened(setup, name)
    examples = first.examples(setup.draws)
    neighbour = setup.names[(setup.names.index(name) + 1) % len(setup.names)]
    mine = atoms_of(first, examples)
    again = atoms_of(opened(setup, name, seed=1), examples)
    other = atoms_of(opened(setup, neighbour, seed=1), examples)
    generator = torch.Generator().manual_seed(0)
    mixed = [(codes, directions[torch.randperm(len(directions), generator=generator)]) for codes, directions in again]
    rivals = {"same": again, "other": other, "chance": mixed}
    values: dict[str, Any] = {"other": neighbour, "energy": []}
    values |= {key: {kind: [] for kind in rivals} for key in ("likeness", "overlap")}
    for layer, (codes, directions) in enumerate(mine):
        energy = codes.abs().mean(0) * directions.norm(dim=1)
        values["energy"].append(energy)
        for kind, rival in rivals.items():
            found = likeness(codes, directions, *rival[layer])
            rows, columns = match(found)
            partner = torch.zeros(len(energy))
            partner[rows] = found[rows, columns]
            values["likeness"][kind].append(partner)
            values["overlap"][kind].append(overlap((codes, directions), rival[layer]))
    return values


@torch.no_grad()
def atoms_of(it: Opened, examples: Examples) -> list[tuple[Tensor, Tensor]]:
    """Codes [tokens, fired] and directions [fired, out] of the atoms that fire on the examples, layer by layer."""
    with trace(it.board.model, codes=True) as seen:
        Examples(it.pipe, examples.noised, examples.conditionings).outputs()
    found = []
    for layer in seen.layers:
        fired = layer.fired > 0
        found.append((layer.every_token()[:, fired], layer.dictionary.decoder.weight[fired]))
    return found


def overlap(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> float:
    """Cosine between what the two layers add altogether, S D of the one and of the other, over all tokens."""
    a, b = ((codes @ directions).flatten() for codes, directions in (one, other))
    return float(normalize(a, dim=0) @ normalize(b, dim=0))


def share(cell: dict[str, Any], kind: str, top: int | None = None, threshold: float = MATCHED) -> float:
    """Share of the first run's atoms (the `top` of most energy) with a partner of at least this likeness."""
    pairs = sorted(zip(np.concatenate(cell["energy"]), np.concatenate(cell["likeness"][kind])), reverse=True)
    return float(np.mean([value >= threshold for _, value in pairs[:top]]))


def bar(cell: dict[str, Any]) -> float:
    """The likeness that one of a hundred atoms reaches by chance."""
    return float(np.quantile(np.concatenate(cell["likeness"]["chance"]), 0.99))


def results(out: Path = HERE) -> str:
    found, rows = read(out), []
    for kind, title in KINDS.items():
        above = [share(cell, kind, threshold=bar(cell)) for cell in found.values()]
        rows.append((
            title,
            spread([100 * share(cell, kind) for cell in found.values()], 1),
            spread([100 * share(cell, kind, TOP) for cell in found.values()], 1),
            spread([100 * value for value in above], 1),
            spread([fmean(cell["overlap"][kind]) for cell in found.values()], 2),
        ))  # fmt: skip
    head = (
        "second run",
        f"likeness ≥ {MATCHED:g}",
        f"of the {TOP} of most energy",
        "above 99 % of chance",
        "cosine of the layers' whole ΔO",
    )
    return table(head, rows)


def section(out: Path = HERE) -> str | None:
    if not (found := read(out)):
        return None
    same, other = ([share(cell, kind, threshold=bar(cell)) for cell in found.values()] for kind in ("same", "other"))
    ahead = sum(a > b for a, b in zip(same, other))
    fired = [sum(map(len, cell["energy"])) for cell in found.values()]
    fewest, most = min(fired), max(fired)
    together = fmean(fmean(cell["overlap"]["same"]) for cell in found.values())
    full, top = (fmean(share(cell, "same", count) for cell in found.values()) for count in (None, TOP))
    if full > 0.5:
        verdict = "Most atoms are found again by another seed."
    elif fmean(same) > 2 * 0.01 and ahead == len(found):
        verdict = (
            f"Another seed finds {full:.0%} of the same atoms, and {top:.0%} of the {TOP} strongest: far more than "
            "chance or another thing, but most atoms are what one run found, not fixed parts of the thing."
        )
    else:
        verdict = "Another seed finds other atoms."
    return f"""## Stability: does a second run find the same atoms?

Two seeds on each of {len(found)} things, run on the same examples; {fewest} to {most} atoms fire. Likeness
of two atoms is cos(s_a, s_b) · cos(d_a, d_b), the cosine between what they add over all tokens; partners are given by
Hungarian assignment in each layer. In percent of the first run's atoms, mean ± standard deviation over the things:

{results(out)}

**{verdict}** The same thing is ahead of another thing on {ahead} of {len(found)} things. Two runs agree better in what
a layer adds altogether (cosine {together:.2f}) than in the atoms it is made of.

![Likeness of matched atoms](figures/steering-stability.png)
"""
