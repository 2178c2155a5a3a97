"""Figure 2: does a task live in the atoms or in the coefficients? Pretrain on low frequencies, fine-tune one on high.

Run `python -m experiments --only fig2`. A cell is one setting, all seeds together: pretraining, then "coefficients
only" (W_s, and W_q and W_k when attention is trained) and "atoms only" (D) from the same pretrained weights.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import normalize

from experiments.common.cells import number, read
from experiments.common.report import Claim, grade, table
from experiments.common.signals import HIGH, LOW, Layer, Replicas, Signals, fourier_bases

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Config:
    """One cell."""

    layer: Layer
    low: int = 5
    """How many of the 25 low frequencies a seed pretrains on."""
    high: int = 5
    """How many of the 8 high frequencies it is fine-tuned on."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)


DENSE = Layer(activation="soft", threshold=0.0)  # σ = identity
SETTINGS = {
    "dense": ("span(D) is the pretraining subspace, every atom used", Config(DENSE)),
    "soft": ("soft threshold, λ = 0.1", Config(Layer(activation="soft"))),
    "top32": ("32 atoms a token", Config(Layer(density=0.32))),
    "top9": ("9 atoms a token", Config(Layer(density=0.09))),
    "width128": ("128 wide: the mask beside the 64 times", Config(replace(DENSE, layout="flagged"))),
    "random-start": ("control: D starts random", Config(replace(DENSE, start="random"))),
    "adam": ("control: ordinary Adam on D", Config(replace(DENSE, optimizer="adam"))),
    "attention": ("control: attention trained", Config(replace(DENSE, attention="trained"))),
    "all25": ("control: all 25 low and all 8 high frequencies", Config(DENSE, 25, 8)),
    "time": (
        "control: tokens are the 64 times with positions, 128 wide, 4 heads, attention trained",
        Config(replace(DENSE, layout="time", attention="trained", batch=8, steps=200, lr=3e-3)),
    ),
}


def outside(atoms: Tensor, bases: Tensor) -> list[float]:
    """The share of the atoms' energy outside the span of the pretraining signals, for every seed."""
    atoms, unit = atoms.double(), normalize(bases.double(), dim=-1)
    rest = atoms - atoms @ unit.mT @ unit
    return (rest.square().sum((1, 2)) / atoms.square().sum((1, 2))).tolist()


def measure(config: Config) -> dict:
    torch.manual_seed(0)
    low = Signals(config.seeds, LOW, config.low, config.layer)
    high = Signals(config.seeds, HIGH, config.high, config.layer)
    before = Replicas(config.seeds, config.layer).train(low, coefficients=True, atoms=True)
    values: dict = {"pretrained": before.measure(low)["nmse"], "untouched": before.measure(high)["nmse"]}
    shown = before.atoms[0].norm(dim=-1).topk(3).indices  # in the figure: the same atoms before and after
    for name, parts in (("coefficients only", (True, False)), ("atoms only", (False, True))):
        after = before.copy().train(high, coefficients=parts[0], atoms=parts[1])
        values[name] = after.measure(high)["nmse"]
        if config.layer.layout != "time":
            values[f"spectrum, {name}"] = spectrum(after.atoms[0])
            values[f"atoms, {name}"] = after.atoms[0][shown]
            values[f"example, {name}"] = example(after, high)
    if config.layer.layout != "time":  # there atoms are not signals
        values["outside"] = outside(before.atoms, low.bases)
        values["spectrum, pretrained"] = spectrum(before.atoms[0])
        values["atoms, pretrained"] = before.atoms[0][shown]
        values["frequencies"] = {"low": low.frequencies[0], "high": high.frequencies[0]}
    return values


def spectrum(atoms: Tensor) -> Tensor:
    """|D φ_f| of the 40 largest atoms, for each of the 33 frequencies."""
    largest = atoms.norm(dim=-1).argsort(descending=True)[:40]
    return (atoms[largest] @ fourier_bases().T).abs() / 64


@torch.no_grad()
def example(replicas: Replicas, signals: Signals) -> dict:
    """One signal of seed 0, what is seen of it and what comes out; the same signal whatever was trained."""
    signals.generators = [torch.Generator().manual_seed(7) for _ in signals.generators]
    tokens, x = signals.draw(1)
    output, _ = replicas(tokens)
    return {"signal": x[0, 0], "seen": signals.observed[0].nonzero().flatten(), "output": output[0, 0, 0]}


def grid(quick: bool = False) -> dict[str, Config]:
    cells = {name: config for name, (_, config) in SETTINGS.items()}
    if quick:
        return {
            name: replace(cells[name], seeds=(0, 1), layer=replace(cells[name].layer, steps=80))
            for name in ("dense", "adam")
        }
    return cells


def met(values: dict) -> bool:
    return min(values["coefficients only"]) >= 0.95 and max(values["atoms only"]) <= 0.01


RULE = "coefficients only ≥ 0.95 and atoms only ≤ 0.01, on every seed"


def claims(out: Path = HERE) -> list[Claim]:
    cells = read(out)

    def told(name: str) -> str:
        both = [number(cells[name][part]) for part in ("coefficients only", "atoms only")]
        return f"NMSE of coefficients only {both[0]}, of atoms only {both[1]}"

    every = [met(values) for values in cells.values()]
    rows = [
        Claim(
            "atoms alone learn the new frequencies, coefficients alone do not",
            f"met in {sum(every)} of the {len(every)} settings below; in the plainest: {told('dense')}",
            f"{RULE}; one verdict over all settings",
            grade(*every),
            brief=told("dense"),
        )
    ]
    return rows + [
        Claim(f"the same, {SETTINGS[name][0].removeprefix('control: ')}", told(name), RULE, grade(met(cells[name])))
        for name in SETTINGS
        if name in cells
    ]


def results(out: Path = HERE) -> str:
    cells = read(out)
    rows = []
    for name, (told, _) in SETTINGS.items():
        if v := cells.get(name):
            leak = number(v["outside"]) if "outside" in v else "–"
            parts = [number(v[part]) for part in ("pretrained", "coefficients only", "atoms only")]
            rows.append((told, *parts, leak, "yes" if met(v) else "no"))
    head = (
        "setting",
        "pretrained, low",
        "coefficients only, high",
        "atoms only, high",
        "energy of D outside",
        "rule met",
    )
    return table(head, rows)
