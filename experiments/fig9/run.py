"""Figure 9: how many of 100 atoms a signal needs, for each σ, and what the atoms look like.

Run `python -m experiments --only fig9`. A cell is one σ at one setting of its dial, all seeds together.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from math import inf, log
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor
from torch.nn.functional import normalize

from experiments.common.cells import number, read, spread
from experiments.common.report import Claim, everywhere_less, grade, table
from experiments.common.signals import LOW, Layer, Replicas, Signals, fourier_bases

HERE = Path(__file__).parent
KS, THRESHOLDS = (3, 5, 9, 16, 32), (0.3, 0.6, 0.9, 1.2, 1.5, 2.4)

GROUNDS = {"5": "5, fixed", "25": "all 25 at once", "5of25": "5 of 25, anew each signal"}
KINDS = {
    "dense": "dense",
    "topk": "top-k",
    "batchk": "batch-k",
    "soft": "soft",
    "relu": "ReLU",
    "unitsoft": "soft, W_s columns at norm 1",
}


@dataclass(frozen=True)
class Config:
    """One cell."""

    layer: Layer
    bases: int = 5
    """How many of the 25 low frequencies a seed's signals are made of."""
    active: int = 0
    """How many of them one signal is made of, drawn anew for every signal; 0: all."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)


def sigma(kind: str, dial: float) -> Layer:
    """The layer of one σ; its dial is k or λ."""
    if kind == "dense":
        return Layer(activation="soft", threshold=0.0)  # σ = identity
    if kind in ("topk", "batchk"):
        return Layer(activation=kind, density=dial / 100)
    return Layer(activation=kind.removeprefix("unit"), threshold=dial, unit_encoder=kind == "unitsoft")


def grid(quick: bool = False) -> dict[str, Config]:
    """Every cell, by name: frequencies, σ, dial."""
    cells = {}
    dials = {"dense": (100,), "topk": KS, "batchk": KS, "soft": THRESHOLDS, "relu": THRESHOLDS, "unitsoft": THRESHOLDS}
    few = {"dense": (100,), "topk": (9, 16), "batchk": (9, 16), "soft": (0.6, 1.2, 2.4), "relu": (0.6, 1.2, 2.4)}
    for ground, kinds in (("5", dials), ("25", few), ("5of25", few)):
        for kind, values in kinds.items():
            for dial in values:
                config = Config(sigma(kind, dial), bases=5 if ground == "5" else 25)
                if ground == "5of25":  # harder to learn
                    config = replace(config, active=5, layer=replace(config.layer, steps=2000))
                cells[f"{ground}-{kind}-{dial}"] = config
    if quick:
        return {
            name: replace(cells[name], seeds=(0, 1), layer=replace(cells[name].layer, steps=60))
            for name in ("5-dense-100", "5-topk-9", "5-soft-0.6")
        }
    return cells


def similarity(vectors: Tensor) -> Tensor:
    """The cosine between each vector and the Fourier basis it resembles most."""
    return (normalize(vectors, dim=-1) @ normalize(fourier_bases(), dim=-1).T).abs().amax(-1)


def measure(config: Config) -> dict:
    torch.manual_seed(0)
    signals = Signals(config.seeds, LOW, config.bases, config.layer, config.active)
    replicas = Replicas(config.seeds, config.layer).train(signals, coefficients=True, atoms=True)
    values: dict = dict(replicas.measure(signals))
    tokens, _ = signals.draw(256)
    with torch.no_grad():
        used = (replicas(tokens)[1] != 0).flatten(1, 2).any(1)  # [seeds, atoms]
    values["similarity"] = [similarity(atoms[own]).mean() for atoms, own in zip(replicas.atoms, used)]
    inside = signals.normal(1000, config.bases) @ signals.bases  # random vectors of the signals' own span
    values["similarity of random"] = similarity(inside).mean(-1)
    energy = replicas.atoms.norm(dim=-1)[0]
    values["atoms of seed 0"] = replicas.atoms[0][energy.argsort(descending=True)[:9]]
    return values


def at_error(cells: Iterable[dict], target: dict) -> list[float]:
    """The atoms a signal at which a σ has the error of `target`, seed by seed; infinite when it never has.

    `cells` are the σ at several settings of its dial; between two of them, log NMSE is a line over log atoms.
    """
    found = []
    for seed, error in enumerate(target["nmse"]):
        curve = sorted((v["active"][seed], v["nmse"][seed]) for v in cells)
        able = [place for place, (_, nmse) in enumerate(curve) if nmse <= error]
        if not able:
            found.append(inf)
        elif able[0] == 0:
            found.append(curve[0][0])  # or fewer
        else:
            (few, bad), (many, good) = curve[able[0] - 1], curve[able[0]]
            found.append(few * (many / few) ** (log(bad / error) / log(bad / good)))
    return found


def of(cells: dict, ground: str, kind: str) -> list[dict]:
    return [v for name, v in cells.items() if name.startswith(f"{ground}-{kind}-")]


def claims(out: Path = HERE) -> list[Claim]:
    cells = read(out)
    grounds = [ground for ground in GROUNDS if f"{ground}-topk-9" in cells]
    top = {ground: cells[f"{ground}-topk-9"] for ground in grounds}
    dense = {ground: cells[f"{ground}-dense-100"] for ground in grounds}

    thresholds = {
        (ground, kind): at_error(of(cells, ground, kind), top[ground])
        for ground in grounds
        for kind in ("soft", "relu")
        if of(cells, ground, kind)
    }

    def told(each: Callable[[str], str]) -> str:
        return "; ".join(f"{GROUNDS[ground]}: {each(ground)}" for ground in grounds)

    return [
        Claim(
            "top-9 completes signals of 5 fixed frequencies with 9 of 100 atoms",
            f"{fmean(top['5']['active']):.0f} atoms at NMSE {spread(top['5']['nmse'])}",
            "NMSE below 0.05 on every seed (that top-9 uses 9 is its definition)",
            grade(max(top["5"]["nmse"]) < 0.05),
            "9 atoms",
            brief=f"NMSE {spread(top['5']['nmse'])} with {fmean(top['5']['active']):.0f} atoms",
        ),
        Claim(
            "9 atoms do as well as all 100",
            "NMSE of top-9 and of the dense layer: "
            + told(lambda g: f"{number(top[g]['nmse'])} and {number(dense[g]['nmse'])}"),
            "NMSE of top-9 below the dense layer's on every seed, for each kind of signal",
            grade(*(everywhere_less(top[ground]["nmse"], dense[ground]["nmse"]) for ground in grounds)),
        ),
        Claim(
            "a threshold needs as few atoms as top-k",
            "atoms a signal at the error of top-9: "
            + "; ".join(f"{GROUNDS[ground]}, {KINDS[kind]}: {count(n)}" for (ground, kind), n in thresholds.items()),
            "at most 9 on every seed, for soft and for ReLU, for each kind of signal",
            grade(*(max(found) <= 9 for found in thresholds.values())),
        ),
        Claim(
            "the atoms of top-9 are Fourier-like",
            "cosine to the nearest basis, of atoms and of random vectors in the span of the signals: "
            + told(lambda g: f"{spread(top[g]['similarity'], 2)} and {spread(top[g]['similarity of random'], 2)}"),
            "that of atoms above that of random vectors on every seed, for each kind of signal",
            grade(*(everywhere_less(top[g]["similarity of random"], top[g]["similarity"]) for g in grounds)),
        ),
    ]


def count(found: list[float]) -> str:
    return "not reached" if inf in found else spread(found, 1)


def results(out: Path = HERE) -> str:
    cells = read(out)

    def order(name: str) -> tuple:
        bases, kind, dial = name.split("-")
        return list(GROUNDS).index(bases), list(KINDS).index(kind), float(dial)

    rows = []
    for name in sorted(cells, key=order):
        bases, kind, dial = name.split("-")
        v = cells[name]
        rows.append(
            (
                GROUNDS[bases],
                KINDS[kind],
                dial,
                spread(v["active"], 1),
                spread(v["alive"], 1),
                number(v["nmse"]),
                spread(v["similarity"]),
                spread(v["similarity of random"]),
            )
        )
    head = (
        "frequencies",
        "σ",
        "k or λ",
        "atoms a signal",
        "atoms alive",
        "NMSE",
        "Fourier similarity",
        "of random vectors",
    )
    grounds = [ground for ground in GROUNDS if f"{ground}-topk-9" in cells]

    def few(kind: str, ground: str) -> str:
        mine = of(cells, ground, kind)
        return count(at_error(mine, cells[f"{ground}-topk-9"])) if mine else "–"

    matched = [
        (KINDS[kind], *(few(kind, ground) for ground in grounds)) for kind in KINDS if len(of(cells, "5", kind)) > 1
    ]
    told = table(("atoms a signal at the error of top-9", *(GROUNDS[ground] for ground in grounds)), matched)
    return f"{told}\n\n{table(head, rows)}"
