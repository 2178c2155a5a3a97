"""σ that holds what it promises: `python -m experiments --only activations`

Every σ learns the same things on moji, aiming at the same density. How the density of the layers goes while training
and what it is while drawing, how evenly the heads of attention fire, how many atoms live, and how well it learnt: in
docs/results/activations.md. What was tried and is not in the library (heads normalised, dead atoms drawn anew) is here.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
import torch

import atomtune
from atomtune.tracing import trace
from experiments.activations.tried import normalised_heads, resampled
from experiments.common import subjects
from experiments.common.cells import measured, read
from experiments.common.report import table

NAMES = ("octopus", "teapot")
TARGET, BAND, FROM = 0.04, 0.25, 100
"""ρ; how far from it a layer may be, from which step on."""
NUM, STEPS = 4, 10
HERE = Path(__file__).parent


@dataclass(frozen=True)
class Kind:
    title: str
    options: dict[str, Any] = field(default_factory=dict)
    inside: Callable[[], AbstractContextManager[None]] = nullcontext
    """What was tried around the library, for training and drawing."""


# Of coefficients that are normal with root mean square 1, a share of 0.04 is beyond ±2.05, and above 1.75.
SOFT, ONE_SIDED = {"activation": "soft", "threshold": 2.05}, {"threshold": 1.75}
SCALE, UNIT = {"threshold_units": "scale"}, {"unit_encoder": True}
KINDS = {
    "topk": Kind("top-k"),
    "batch-topk": Kind("batch top-k", {"activation": "batch_topk"}),
    "jumprelu": Kind("jumprelu, λ learned", {"activation": "jumprelu", **ONE_SIDED, **SCALE}),
    "soft": Kind("soft, λ fixed", SOFT),
    "relu": Kind("ReLU, λ fixed", {"activation": "relu", **ONE_SIDED}),
    "soft-scale": Kind("soft, λ in units of scale", SOFT | SCALE),
    "soft-unit": Kind("soft, λ fixed, encoder at norm 1", SOFT | UNIT),
    "relu-scale": Kind("ReLU, λ in units of scale", {"activation": "relu", **ONE_SIDED, **SCALE}),
    "annealed": Kind("top-k, density annealed from 0.32", {"density_start": 0.32}),
    "heads": Kind("top-k, heads normalised (tried)", inside=normalised_heads),
    "resampled": Kind("top-k, dead atoms drawn anew (tried)", inside=resampled),
}


@dataclass(frozen=True)
class Config:
    """One cell: a subject and the σ that learns it."""

    name: str
    label: str

    @property
    def settings(self) -> dict[str, Any]:
        options = KINDS[self.label].options
        return {"base": subjects.weights_digest(), "options": options, "num": NUM, "steps": STEPS}


def grid(quick: bool = False) -> dict[str, Config]:
    """There is no small slice: a density is not held before training is half over."""
    return {} if quick else {f"{name}-{label}": Config(name, label) for name in NAMES for label in KINDS}


def measure(config: Config) -> dict[str, Any]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    name, kind = config.name, KINDS[config.label]
    options = {"report_to": "tensorboard", "measure_every": 5} | kind.options
    with kind.inside():
        if kind.inside is nullcontext:
            run, _ = subjects.train(name, seed=0, **options)
        else:  # the cache knows options, not what is around them
            folder = subjects.CACHE / subjects.weights_digest() / f"{name}-{kind.inside.__name__}"
            subjects.pictures(name, folder / "pictures")
            options |= {
                "config": "moji-paper",
                "class_name": name,
                "token": subjects.TOKEN,
                "sample_every": 0,
                "checkpoint_every": 1_000_000,
            }
            run = folder / "run"
            atomtune.customize(folder / "pictures", out=run, overwrite=True, **options)
        pipe = subjects.moji()
        model = atomtune.load_adapter(pipe, run)
        with trace(model) as seen:
            images = subjects.draw(pipe, name, NUM, steps=STEPS)
    log = EventAccumulator(str(run / "logs" / "customize"), size_guidance={"scalars": 0})
    log.Reload()
    values: dict[str, Any] = {
        layer: {point.step: point.value for point in log.Scalars(f"density_{layer}_layer")}
        for layer in ("lowest", "median", "highest")
    }
    values["drawing"] = [float(layer.firing_rate.mean()) for layer in seen.layers]
    values["alive"] = int(seen.alive)
    values["heads"] = [
        torch.bincount(layer.dictionary.head, layer.fired.double(), layer.dictionary.seating.heads) / layer.fired.sum()
        for layer in seen.layers
    ]
    return values | subjects.score(images, name)


def curve(c: dict[str, Any], layer: str) -> tuple[list[int], list[float]]:
    points = sorted((int(step), value) for step, value in c[layer].items())
    return [step for step, _ in points], [value for _, value in points]


def off(c: dict[str, Any], layer: str) -> float:
    """The largest distance from the target, as a share of it, from step `FROM` to the end."""
    return max(abs(value / TARGET - 1) for step, value in zip(*curve(c, layer)) if step >= FROM)


def off_worst(c: dict[str, Any]) -> float:
    return max(off(c, "lowest"), off(c, "highest"))


def off_drawing(c: dict[str, Any]) -> tuple[float, float]:
    """The same of the median layer, and of the worst, while pictures are drawn."""
    return abs(median(c["drawing"]) / TARGET - 1), max(abs(value / TARGET - 1) for value in c["drawing"])


def heads_in_use(c: dict[str, Any]) -> float:
    """exp(entropy) of the share of firing by head: all of them when they fire alike; mean over layers that fire."""
    shares = np.array(c["heads"], dtype=float).clip(1e-12)
    return float(np.nanmean(np.exp(-(shares * np.log(shares)).sum(1))))


def held(cells: list[dict[str, Any]]) -> bool:
    """Whether every layer stays in the band from step `FROM` to the last."""
    return all(max(off(c, "median"), off_worst(c)) <= BAND for c in cells)


def results(out: Path = HERE) -> str:
    found = read(out)
    rows, names = [], [n for n in NAMES if any(label.startswith(f"{n}-") for label in found)]
    for label, kind in KINDS.items():
        cells = [found[f"{name}-{label}"] for name in names if f"{name}-{label}" in found]
        if not cells:
            continue
        drawing = [off_drawing(c) for c in cells]
        rows.append((
            kind.title,
            f"{max(off(c, 'median') for c in cells):.0%}",
            f"{max(map(off_worst, cells)):.0%}",
            f"{max(m for m, _ in drawing):.0%}",
            f"{max(w for _, w in drawing):.0%}",
            "yes" if held(cells) else "no",
            ", ".join(f"{c['alive']:,}" for c in cells),
            f"{fmean(map(heads_in_use, cells)):.1f}",
            ", ".join(f"{c['fidelity']:.2f}" for c in cells),
            ", ".join(f"{c['alignment']:.2f}" for c in cells),
        ))  # fmt: skip
    head = (
        "σ", "training: median layer off by", "worst layer", "drawing: median layer", "worst layer",
        f"within {BAND:.0%} while training", "atoms alive", "heads in use", "fidelity", "alignment",
    )  # fmt: skip
    return table(head, rows)


def page(out: Path = HERE) -> str:
    found = read(out)
    names = [n for n in NAMES if any(label.startswith(f"{n}-") for label in found)]
    tried = {label: [found[f"{n}-{label}"] for n in names if f"{n}-{label}" in found] for label in KINDS}
    count = len(next(iter(found.values()))["heads"][0])
    return f"""# σ that holds what it promises

Generated by `python -m experiments` from `experiments/activations/results.jsonl`; edit nothing here.
{" and ".join(names)} (in this order in every cell, one seed) learnt with the recipe moji-paper and each σ, all aiming
at a density of {TARGET:g}; where there is one number, on the first thing alone. Off: the largest distance from the
target, as a share of it, from step {FROM} to the last; while drawing, over all sampling steps. Heads in use:
exp(entropy) of the share of firing by head, of {count} heads.
{measured(out)}

{results(out)}

{_sentences(tried)}

A fixed λ is chosen so that normal coefficients of size 1 would give the density. Units of scale measure λ in the
running root mean square of each layer's coefficients. Batch top-k keeps k·N of a batch's coefficients while training
and draws with one fixed threshold, the one that did so, which is why it is further off there. The λ of jumprelu is
learned, with a penalty on the density's error. Annealing ends half-way, at step 125. In the figure, gray is
±{BAND:.0%} of the target.

![Density of the layers over training](figures/activations.png)
"""


def _sentences(tried: dict[str, list[dict[str, Any]]]) -> str:
    lines = []
    holds = [KINDS[label].title for label, cells in tried.items() if cells and held(cells)]
    if holds:
        lines.append(f"- Within {BAND:.0%} in every layer from step {FROM} to the last: {', '.join(holds)}.")
    for label, what, number in (
        ("heads", "Dividing coefficients by their size in their head", heads_in_use),
        ("resampled", "Drawing dead atoms anew every 50 steps until step 150", lambda c: c["alive"]),
    ):
        if cells := tried[label]:
            plain = tried["topk"][: len(cells)]
            before, after = fmean(map(number, plain)), fmean(map(number, cells))
            worse = fmean(c["fidelity"] for c in cells) - fmean(c["fidelity"] for c in plain)
            unit = "heads in use" if label == "heads" else "atoms alive"
            lines.append(f"- {what}: {unit} {before:.4g} → {after:.4g}, fidelity {worse:+.2f}. Not in the library.")
    return "\n".join(lines)
