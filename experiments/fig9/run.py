"""Figure 9: how many of 100 atoms a signal needs, for each σ, and what the atoms look like.

Run `python -m experiments.fig9.run`. A cell is one σ at one setting of its dial, all seeds together.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor
from torch.nn.functional import normalize

from experiments.cells import read, run_cells, spread
from experiments.report import CONDITIONS, HOLDS, NOT_HERE, Claim, table
from experiments.signals import LOW, Layer, Replicas, Signals, fourier_bases

HERE = Path(__file__).parent
COMMAND = "python -m experiments.fig9.run"
KS, THRESHOLDS = (5, 9, 16, 32), (0.3, 0.6, 1.2, 2.4)


@dataclass(frozen=True)
class Config:
    """One cell."""

    layer: Layer
    bases: int = 5
    """How many of the 25 low frequencies a seed's signals are made of."""
    active: int = 0
    """How many of them one signal is made of, drawn anew for every signal; 0: all."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)


def sigma(activation: str, dial: float) -> Layer:
    layer = Layer(activation=activation)
    if activation in ("topk", "batchk"):
        return replace(layer, density=dial / layer.num_atoms)
    return replace(layer, threshold=dial)


def grid(quick: bool = False) -> dict[str, Config]:
    """Every cell, by name: frequencies, σ, dial."""
    cells = {}
    for kind, layer in (("dense", sigma("soft", 0)), ("topk", sigma("topk", 9)), ("batchk", sigma("batchk", 9))):
        cells[f"5of25-{kind}-{100 if kind == 'dense' else 9}"] = Config(replace(layer, steps=2000), 25, active=5)
    for bases, ks, thresholds in ((5, KS, THRESHOLDS), (25, (9,), (0.6,))):
        cells[f"{bases}-dense-100"] = Config(sigma("topk", 100), bases)
        for k in ks:
            cells[f"{bases}-topk-{k}"] = Config(sigma("topk", k), bases)
            cells[f"{bases}-batchk-{k}"] = Config(sigma("batchk", k), bases)
        for threshold in thresholds:
            cells[f"{bases}-soft-{threshold}"] = Config(sigma("soft", threshold), bases)
            cells[f"{bases}-relu-{threshold}"] = Config(sigma("relu", threshold), bases)
            cells[f"{bases}-unitsoft-{threshold}"] = Config(replace(sigma("soft", threshold), unit_encoder=True), bases)
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


def fewest(cells: dict, kind: str, target: float) -> tuple[float, str]:
    """The fewest atoms a signal at which this σ is no worse than `target`, and the dial; infinite when it never is."""
    able = [
        (fmean(v["active"]), name) for name, v in cells.items() if f"-{kind}-" in name and fmean(v["nmse"]) <= target
    ]
    return min(able, default=(float("inf"), ""))


GROUNDS = {"5": "5, fixed", "25": "all 25 at once", "5of25": "5 of 25, anew each signal"}
KINDS = {
    "dense": "dense",
    "topk": "top-k",
    "batchk": "batch-k",
    "soft": "soft",
    "relu": "ReLU",
    "unitsoft": "soft, W_s columns at norm 1",
}


def claims(out: Path = HERE) -> list[Claim]:
    cells = read(out / "results")
    top, dense = cells["5-topk-9"], cells["5-dense-100"]
    active, alive = fmean(top["active"]), fmean(dense["active"])
    good = fmean(top["nmse"]) < 0.05
    rows = [
        Claim(
            "9",
            "top-9 completes signals of 5 frequencies with 9 of 100 atoms",
            "9 atoms",
            f"{active:.0f} atoms at NMSE {spread(top['nmse'])}; dense: {alive:.0f} at {spread(dense['nmse'])}",
            HOLDS if active <= 9.01 and good else NOT_HERE,
            COMMAND,
        )
    ]
    matched = 1.25 * fmean(top["nmse"])
    small = {name: v for name, v in cells.items() if name.startswith("5-")}
    counts = {kind: fewest(small, kind, matched)[0] for kind in KINDS}
    others = max(counts["soft"], counts["relu"])
    told = ", ".join(
        f"{KINDS[kind]} {'never' if c == float('inf') else f'{c:.0f}'}" for kind, c in counts.items() if kind != "dense"
    )
    rows.append(
        Claim(
            "9",
            "at the error of top-9 a threshold (soft, ReLU) needs few atoms too",
            "",
            f"fewest atoms at no more than 1.25 of its error: {told}",
            HOLDS if others < 10 else CONDITIONS if others < 20 else NOT_HERE,
            COMMAND,
        )
    )
    if "5of25-topk-9" in cells:
        top, dense = cells["5of25-topk-9"], cells["5of25-dense-100"]
        rows.append(
            Claim(
                "9",
                "9 atoms do better than 100 when every signal is made of 5 frequencies of its own, out of 25",
                "",
                f"NMSE {spread(top['nmse'])} against {spread(dense['nmse'])}",
                HOLDS if fmean(top["nmse"]) < fmean(dense["nmse"]) else NOT_HERE,
                COMMAND,
            )
        )
        like = {ground: fmean(cells[f"{ground}-topk-9"]["similarity"]) for ground in GROUNDS}
        chance = {ground: fmean(cells[f"{ground}-topk-9"]["similarity of random"]) for ground in GROUNDS}
        told = "; ".join(f"{GROUNDS[ground]}: {like[ground]:.2f} ({chance[ground]:.2f})" for ground in GROUNDS)
        held = [like[ground] > chance[ground] + 0.2 for ground in GROUNDS]
        rows.append(
            Claim(
                "9",
                "the atoms of top-9 are Fourier-like",
                "",
                f"cosine to the nearest basis (random vectors of the signals' span): {told}",
                HOLDS if all(held) else CONDITIONS if any(held) else NOT_HERE,
                COMMAND,
            )
        )
    return rows


def results(out: Path = HERE) -> str:
    cells = read(out / "results")

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
                spread(v["nmse"]),
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
    return table(head, rows)


if __name__ == "__main__":
    run_cells(HERE / "results", grid(), measure)
