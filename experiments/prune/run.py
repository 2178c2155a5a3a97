"""How few atoms? `python -m experiments --only prune`

Both readings of the paper's Fig. 3: the best atoms over the whole model, or in each layer, by energy and at random, of
adapters trained with the recipe moji-paper. Fidelity and alignment of what is left, without further training.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments.common.cells import read, spread
from experiments.common.intervals import interval, shown
from experiments.common.report import Claim, grade, table
from experiments.common.steering import Config, opened, score_current, setup_of

HERE = Path(__file__).parent
COUNTS = (4, 12, 40, 120, 400)
RANKINGS = {"energy": "by energy", "random": "at random"}
READINGS = {"model": "over the model", "layer": "in each layer"}
SMALL = 0.1  # of the atoms: the most that is called a small number


def grid(quick: bool = False) -> dict[str, Config]:
    setup = setup_of(quick)
    return {name: Config(setup, name, ("num", "steps")) for name in setup.names}


def measure(config: Config) -> dict[str, Any]:
    """Scores of the base, of the whole adapter, and of what is left of it."""
    setup, it = config.setup, opened(config.setup, config.name)
    generator = torch.Generator().manual_seed(0)
    scores = {"energy": None, "random": [torch.rand(d.num_atoms, generator=generator) for d in it.board.dictionaries]}
    most = min(d.num_atoms for d in it.board.dictionaries)
    values: dict[str, Any] = {"atoms": len(it.board), "layers": len(it.board.dictionaries)}
    values["all"] = score_current(it, setup)
    for by, ranking in scores.items():
        for reading in READINGS:
            counts = [count for count in COUNTS if reading == "model" or count < most]
            values[f"{reading}-{by}"] = left = []
            for count in counts:
                it.board.reset()
                it.board.keep(count, by=ranking, per_layer=reading == "layer")
                left.append(score_current(it, setup) | {"count": count, "kept": len(it.board.kept)})
    it.board.reset()
    with it.board.muted(*(f"L{layer}" for layer in range(len(it.board.dictionaries)))):
        values["base"] = score_current(it, setup)
    return values


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


def results(out: Path = HERE) -> str:
    found = read(out)
    first = next(iter(found.values()))
    rows = []
    for reading, title in READINGS.items():
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
    return table(head, rows)


def claims(out: Path = HERE) -> list[Claim]:
    """None before all subjects are there."""
    found = read(out)
    if found.keys() < grid().keys():
        return []
    first, rules = next(iter(found.values())), []
    for reading, title in READINGS.items():
        kept = [left["kept"] for left in first[f"{reading}-energy"]]
        few = max(place for place, count in enumerate(kept) if count <= SMALL * first["atoms"])
        own = shares(found, f"{reading}-energy")
        enough = [count for count, part in zip(kept, own.T) if interval(part)[0] > 0.5]
        half = f"more than half is left from {min(enough):,} on" if enough else "more than half is never left for sure"
        number = shown(own[:, few], 2)
        rules.append(
            Claim(
                f"A small number of atoms carries the concept, the best {title}",
                f"{number} of the gain in fidelity with {kept[few]:,} of {first['atoms']:,} atoms; {half}",
                f"with the most that is a tenth of the atoms or less ({kept[few]:,}), the 95 % interval of the share "
                "that is left is above one half",
                grade(interval(own[:, few])[0] > 0.5),
                brief=f"{number} of the gain left with {kept[few]:,} of {first['atoms']:,}",
            )
        )
    for reading, title in READINGS.items():
        kept = [left["kept"] for left in first[f"{reading}-energy"]]
        more = (shares(found, f"{reading}-energy") - shares(found, f"{reading}-random")).T
        rules.append(
            Claim(
                f"Which atoms are kept matters, {title}",
                "by energy less at random, of the gain: "
                + "; ".join(f"{count:,} atoms {shown(part, 2, '+')}" for count, part in zip(kept, more)),
                "the 95 % interval of the paired difference is above 0; one verdict over all numbers of atoms",
                grade(*(interval(part)[0] > 0 for part in more)),
            )
        )
    return rules


def section(out: Path = HERE) -> str | None:
    if not (found := read(out)):
        return None
    first = next(iter(found.values()))
    whole, base = ([c[kind] for c in found.values()] for kind in ("all", "base"))
    return f"""## How few atoms?

The recipe moji-paper trains {first["atoms"]:,} atoms in {first["layers"]} layers. All of them: fidelity
{spread([s["fidelity"] for s in whole], 2)}, alignment {spread([s["alignment"] for s in whole], 2)}; the base:
{spread([s["fidelity"] for s in base], 2)} and {spread([s["alignment"] for s in base], 2)}. What is left of the gain in
fidelity when the others are dropped, with no further training, mean ± standard deviation over {len(found)} things:

{results(out)}

![Fidelity and alignment against the number of atoms](figures/steering-prune.png)
"""
