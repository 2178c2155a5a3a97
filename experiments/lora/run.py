"""Atoms and LoRA on the same board, the fair question: `python -m experiments --only lora`

A LoRA's rank-1 components are linear atoms whose codes are dense (`atomtune.lora.conversion`), as large as an atom:
C_i + C_o numbers. For each of the six things and for atoms, a LoRA of rank 16 on q, k, v and out as it was trained, and
the same LoRA along its singular directions: how much of the fidelity gain the best 4, 12, 40 and 120 units keep, ranked
by energy and by gradient. How local and how separable units are is measured by `experiments/influence`.
"""

from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch

from atomtune.analysis.importance import importance
from atomtune.tracing import trace
from experiments.common import subjects
from experiments.common.cells import read, spread
from experiments.common.report import table
from experiments.common.steering import FULL, METHODS, Config, opened, score_current, setup_of

HERE = Path(__file__).parent
RANKINGS = ("energy", "gradient")


def grid(quick: bool = False) -> dict[str, Config]:
    setup = setup_of(quick)
    drawn = ("num", "steps")
    used = dict.fromkeys(METHODS, ("draws", "counts", *drawn)) | {"base": drawn}
    return {f"{name}-{method}": Config(setup, name, used[method], method) for name in setup.names for method in used}


def measure(config: Config) -> dict[str, Any]:
    """Scores of the whole adapter, and of its best units by each ranking."""
    setup, name, method = config.setup, config.name, config.method
    if method == "base":
        pipe = subjects.moji()
        return subjects.score(subjects.draw(pipe, name, setup.num, steps=setup.steps), name)
    it = opened(setup, name, method)
    examples = it.examples(setup.draws)
    with trace(it.board.model) as seen, torch.no_grad():
        examples.losses()
    rankings = {
        "energy": importance(it.board, "energy", traced=seen),
        "gradient": importance(it.board, "gradient", loss=examples.losses),
    }
    values: dict[str, Any] = {"units": len(it.board), "all": score_current(it, setup)}
    for by, ranking in rankings.items():
        values[by] = []
        for count in setup.counts:
            it.board.reset()
            it.board.keep(count, by=ranking)
            values[by].append(score_current(it, setup))
    return values


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


def results(out: Path = HERE) -> str:
    """What is left of the gain in fidelity, in percent."""
    found, rows = read(out), []
    counts = FULL.counts[: shares(found, "atoms", "energy").shape[1]]
    for method, title in METHODS.items():
        units = next(cell["units"] for label, cell in found.items() if label.endswith(f"-{method}"))
        for by in RANKINGS:
            percent = [spread(100 * column, 0) for column in shares(found, method, by).T]
            rows.append((title, f"{units:,}", by, *percent))
    return table(("method", "units", "ranked by", *(f"best {count}" for count in counts)), rows)


def section(out: Path = HERE) -> str | None:
    if not (found := read(out)):
        return None
    units = []
    for method, title in METHODS.items():
        mine = [cell for label, cell in found.items() if label.endswith(f"-{method}")]
        bases = [found[f"{label.rpartition('-')[0]}-base"] for label in found if label.endswith(f"-{method}")]
        gains = [cell["all"]["fidelity"] - base["fidelity"] for cell, base in zip(mine, bases)]
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

{results(out)}
"""
    return text + _locality(out) + _verdict(out, found)


def influence_of(out: Path, method: str, key: str) -> list[float]:
    cells = {label: cell for label, cell in read(out.parent / "influence").items() if label.endswith(f"-{method}")}
    return [fmean(cell[key]) if isinstance(cell[key], list) else cell[key] for cell in cells.values()]


def _locality(out: Path) -> str:
    if not read(out.parent / "influence"):
        return ""
    keys = ("map coverage", "influence coverage", "additivity", "additivity of all")
    rows = [(title, *(spread(influence_of(out, method, key), 2) for key in keys)) for method, title in METHODS.items()]
    head = ("method", "share of tokens in a map", "share of latent in an influence", "error of addition in a block")
    return f"""
**How local, how separable?** A map of N places covers exp(entropy)/N of them, 1 when it is the same everywhere: for the
codes |s_m| over the tokens, and for what a unit changes in the denoiser's answer, weighted by how much. Error of
addition: ‖Σ_m I_m − I‖ / ‖I‖, mean over the blocks, and for all units of the model.

{table((*head, "in the model"), rows)}

![Concentration, locality and additivity of atoms and LoRA](figures/steering-lora.png)
"""


def _verdict(out: Path, found: dict[str, Any]) -> str:
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
        if read(out.parent / "influence"):
            a, b = np.array(influence_of(out, "atoms", key)), np.array(influence_of(out, rival, key))
            who, ahead = ("atoms", (a < b).sum()) if a.mean() < b.mean() else ("LoRA's components", (b < a).sum())
            lines.append(f"- {who} {words}: atoms {a.mean():.2f}, LoRA {b.mean():.2f}, on {ahead} of {len(a)} things")
    return f"""
Seen, each with its better ranking, LoRA with its better split ({METHODS[rival]}):

{chr(10).join(lines)}
"""
