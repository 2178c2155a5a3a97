"""Atoms and LoRA on the same board, the fair question: `python -m experiments.steering.lora`

A LoRA's rank-1 components are linear atoms whose codes are dense (`atomtune.lora.conversion`), as large as an atom:
C_i + C_o numbers. For each of the six things and for atoms, a LoRA of rank 16 on q, k, v and out as it was trained, and
the same LoRA along its singular directions: how much of the fidelity gain the best 4, 12, 40 and 120 units keep, ranked
by energy and by gradient. How local and how separable units are is measured by `experiments.steering.influence`.
"""

from functools import partial
from statistics import fmean
from typing import Any

import numpy as np
import torch

import atomtune
from atomtune.analysis.importance import importance
from atomtune.tracing import trace
from experiments import subjects
from experiments.cells import spread
from experiments.figures import BLUE, GREEN, GREY, ORANGE, plt, save
from experiments.report import table
from experiments.steering.common import FULL, METHODS, Place, Setup, main, opened, run_cell, score_as_it_is

RANKINGS = ("energy", "gradient")


def measure(setup: Setup, name: str, method: str) -> dict[str, Any]:
    """Scores of the whole adapter, and of its best units by each ranking."""
    if method == "base":
        pipe = atomtune.load_base("moji")
        return subjects.score(subjects.draw(pipe, name, setup.num, steps=setup.steps), name)
    it = opened(setup, name, method)
    examples = it.examples(setup.draws)
    with trace(it.board.model) as seen, torch.no_grad():
        examples.losses()
    rankings = {
        "energy": importance(it.board, "energy", traced=seen),
        "gradient": importance(it.board, "gradient", loss=examples.losses),
    }
    values: dict[str, Any] = {"units": len(it.board), "all": score_as_it_is(it, setup)}
    for by, ranking in rankings.items():
        values[by] = []
        for count in setup.counts:
            it.board.reset()
            it.board.keep(count, by=ranking)
            values[by].append(score_as_it_is(it, setup))
    return values


def run(setup: Setup = FULL) -> None:
    for name in setup.names:
        for method in ("base", *METHODS):
            used = ("num", "steps") if method == "base" else ("draws", "counts", "num", "steps")
            run_cell(setup, "lora", f"{name}-{method}", used, partial(measure, setup, name, method))


def shares(found: dict[str, Any], method: str, by: str) -> np.ndarray:
    """[things, counts]: the part of the whole adapter's fidelity gain that is left."""
    rows = []
    for label, cell in found.items():
        name, _, kind = label.rpartition("-")
        if kind == method:
            base, whole = found[f"{name}-base"]["fidelity"], cell["all"]["fidelity"]
            rows.append([(kept["fidelity"] - base) / (whole - base) for kept in cell[by]])
    return np.array(rows)


def best_ranking(found: dict[str, Any], method: str) -> str:
    """Which of the two keeps more, over things and counts."""
    return max(RANKINGS, key=lambda by: shares(found, method, by).mean())


def section(place: Place) -> str | None:
    if not (found := place.cells("lora")):
        return None
    kept, units = [], []
    counts = FULL.counts[: shares(found, "atoms", "energy").shape[1]]
    for method, title in METHODS.items():
        mine = [cell for label, cell in found.items() if label.endswith(f"-{method}")]
        bases = [found[f"{label.rpartition('-')[0]}-base"] for label in found if label.endswith(f"-{method}")]
        gains = [cell["all"]["fidelity"] - base["fidelity"] for cell, base in zip(mine, bases)]
        for by in RANKINGS:
            percent = [spread(100 * column, 0) for column in shares(found, method, by).T]
            kept.append((title, f"{mine[0]['units']:,}", by, *percent))
        units.append((title, spread(gains, 2), spread([c["all"]["alignment"] for c in mine], 2)))
    things = sum(label.endswith("-base") for label in found)
    base = [cell["alignment"] for label, cell in found.items() if label.endswith("-base")]
    text = f"""## Atoms and LoRA on one board: the fair question

The components of a LoRA (rank 16 on q, k, v and out of the same attention layers, trained with the same recipe) are put
on the same board as atoms of dense codes. One of them is as large as an atom: C_i + C_o numbers. "Singular directions"
is the same LoRA with BA split in its unique way. On {things} things, mean ± standard deviation.

The whole adapter (alignment of the base: {spread(base, 2)}):

{table(("method", "fidelity gained", "alignment"), units)}

**How concentrated?** Part of that gain, in percent, that is left when the best units over the whole model are kept:

{table(("method", "units", "ranked by", *(f"best {count}" for count in counts)), kept)}
"""
    return text + _locality(place) + _verdict(place, found)


def _influence(place: Place, method: str, key: str) -> list[float]:
    cells = {label: cell for label, cell in place.cells("influence").items() if label.endswith(f"-{method}")}
    return [fmean(cell[key]) if isinstance(cell[key], list) else cell[key] for cell in cells.values()]


def _locality(place: Place) -> str:
    if not place.cells("influence"):
        return ""
    keys = ("map coverage", "influence coverage", "additivity", "additivity of all")
    rows = [(title, *(spread(_influence(place, method, key), 2) for key in keys)) for method, title in METHODS.items()]
    head = ("method", "share of tokens in a map", "share of latent in an influence", "error of addition in a block")
    return f"""
**How local, how separable?** A map of N places covers exp(entropy)/N of them, 1 when it is the same everywhere: for the
codes |s_m| over the tokens, and for what a unit changes in the denoiser's answer, weighted by how much. Error of
addition: ‖Σ_m I_m − I‖ / ‖I‖, mean over the blocks, and for all units of the model.

{table((*head, "in the model"), rows)}

![Concentration, locality and additivity of atoms and LoRA]({place.figure("lora").relative_to(place.docs)})
"""


def _verdict(place: Place, found: dict[str, Any]) -> str:
    """What is seen, said by rule: the larger mean over the things, and on how many of them."""
    ours = shares(found, "atoms", best_ranking(found, "atoms"))
    rival = max(("lora", "principal"), key=lambda method: shares(found, method, best_ranking(found, method)).mean())
    theirs = shares(found, rival, best_ranking(found, rival))
    lines = []
    for column, count in enumerate(FULL.counts[: ours.shape[1]]):
        a, b = ours[:, column], theirs[:, column]
        who = "atoms keep more" if a.mean() > b.mean() else "LoRA keeps more"
        ahead = int((a > b).sum()) if a.mean() > b.mean() else int((b > a).sum())
        lines.append(f"- best {count}: {who}, {a.mean():.0%} against {b.mean():.0%}, on {ahead} of {len(a)} things")
    sentences = {
        "map coverage": "cover less of the tokens with their codes",
        "influence coverage": "change less of the picture each",
        "additivity": "add up better inside a block",
        "additivity of all": "add up better over the whole model",
    }
    for key, words in sentences.items():
        if place.cells("influence"):
            a, b = np.array(_influence(place, "atoms", key)), np.array(_influence(place, rival, key))
            who, ahead = ("atoms", (a < b).sum()) if a.mean() < b.mean() else ("LoRA's components", (b < a).sum())
            lines.append(f"- {who} {words}: atoms {a.mean():.2f}, LoRA {b.mean():.2f}, on {ahead} of {len(a)} things")
    return f"""
Seen, each with its better ranking, LoRA with its better split ({METHODS[rival]}):

{chr(10).join(lines)}
"""


def figure(place: Place) -> None:
    if not (found := place.cells("lora")) or not place.cells("influence"):
        return
    drawn, axes = plt.subplots(1, 3, figsize=(12, 3.8), width_ratios=(1.5, 1, 1))
    colours = dict(zip(METHODS, (BLUE, ORANGE, GREEN)))
    for method, title in METHODS.items():
        by = best_ranking(found, method)
        part = 100 * shares(found, method, by)
        counts = FULL.counts[: part.shape[1]]
        axes[0].plot(counts, part.mean(0), color=colours[method], marker="o", label=f"{title} (by {by})")
        axes[0].vlines(counts, part.min(0), part.max(0), color=colours[method], linewidth=2, alpha=0.4)
    axes[0].set_xscale("log")
    axes[0].set_xticks(FULL.counts, [str(count) for count in FULL.counts])
    axes[0].axhline(0, color=GREY, linewidth=0.8)
    axes[0].set_xlabel("units kept over the whole model")
    axes[0].set_ylabel("fidelity gain left, %")
    axes[0].legend(frameon=False, fontsize=9)
    for axis, keys, title in (
        (axes[1], {"map coverage": "codes", "influence coverage": "influence"}, "share of the picture a unit covers"),
        (axes[2], {"additivity": "in a block", "additivity of all": "in the model"}, "error of addition"),
    ):
        for shift, method in zip((-0.25, 0, 0.25), METHODS):
            for spot, key in enumerate(keys):
                values = _influence(place, method, key)
                axis.bar(spot + shift, fmean(values), 0.22, color=colours[method])
                axis.vlines(spot + shift, min(values), max(values), color="black", linewidth=1)
        axis.set_xticks(range(len(keys)), list(keys.values()))
        axis.set_title(title, fontsize=10)
    save(drawn, place.figure("lora"))


if __name__ == "__main__":
    main(run, figure)
