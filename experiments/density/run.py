"""Figure 7: density against fidelity, alignment and diversity: `python -m experiments --only density`

Density is turned twice: in training, one adapter for each ρ, and as a dial of the one that was trained with ρ = .04,
which the other experiments on steering share.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from experiments.common import steering
from experiments.common.cells import read
from experiments.common.intervals import paired, shown, trend
from experiments.common.report import Claim, table
from experiments.common.steering import opened, score_current, setup_of

HERE = Path(__file__).parent
DENSITIES = (0.01, 0.02, 0.04, 0.08, 0.16)
OWN = 0.04  # of the recipe
WAYS = {"trained": "trained with it", "dial": "turned after training"}
SCORES = {"fidelity": -1, "alignment": 1, "diversity": 1}
"""Score → whether it should rise (1) or fall (-1) as fewer atoms are used."""


@dataclass(frozen=True)
class Config(steering.Config):
    """One cell: a subject, learnt once, and the densities at which it is drawn."""

    densities: tuple[float, ...] = ()

    @property
    def settings(self) -> dict[str, Any]:
        return super().settings | {"densities": self.densities}


def grid(quick: bool = False) -> dict[str, Config]:
    setup, cells = setup_of(quick), {}
    for name in setup.names:
        cells[f"{name}-dial"] = Config(setup, name, ("num", "steps"), densities=DENSITIES)
        for density in DENSITIES:
            if density != OWN:
                own = replace(setup, train=(*setup.train, ("density", density)))
                cells[f"{name}-trained-{density:g}"] = Config(own, name, ("num", "steps"), densities=(density,))
    return cells


def measure(config: Config) -> dict[str, Any]:
    """{density: scores}"""
    it, found = opened(config.setup, config.name), {}
    for density in config.densities:
        it.board.density = density
        found[f"{density:g}"] = score_current(it, config.setup)
    return found


def curves(out: Path = HERE) -> dict[str, dict[str, list[dict[str, float]]]]:
    """Way → subject → the scores at each density; of the subjects whose cells are all there."""
    found = read(out)
    ways: dict[str, dict[str, list[dict[str, float]]]] = {way: {} for way in WAYS}
    for name in dict.fromkeys(cell.split("-")[0] for cell in found):
        dial = found.get(f"{name}-dial")
        others = {density: found.get(f"{name}-trained-{density:g}") for density in DENSITIES if density != OWN}
        if dial is None or None in others.values():
            continue
        ways["dial"][name] = [dial[f"{density:g}"] for density in DENSITIES]
        ways["trained"][name] = [(others.get(density) or dial)[f"{density:g}"] for density in DENSITIES]
    return ways


def at(curve: dict[str, list[dict[str, float]]], place: int, score: str) -> Sequence[float]:
    """One score of every subject at one density."""
    return [points[place][score] for points in curve.values()]


def results(out: Path = HERE) -> str:
    rows = []
    for way, curve in curves(out).items():
        for place, density in enumerate(DENSITIES if curve else ()):
            rows.append([WAYS[way], f"{density:g}", *(shown(at(curve, place, score), 3) for score in SCORES)])
    return table(["density", "ρ", *SCORES], rows)


def claims(out: Path = HERE) -> list[Claim]:
    """Written before the first cell was run. None before all subjects are there."""
    if read(out).keys() < grid().keys():
        return []
    rules = []
    for way, curve in curves(out).items():
        for score, sign in SCORES.items():
            trends = [trend(DENSITIES, [point[score] for point in points]) for points in curve.values()]
            change = "lower" if sign < 0 else "higher"
            title = f"At a lower density, {WAYS[way]}, {score} is {change}"
            rules.append(paired(title, trends, -sign, what="rank correlation with density"))
    return rules
