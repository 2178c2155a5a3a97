"""Which cheap importance agrees with leaving atoms out one by one? `python -m experiments --only importance`

For each of the six things: energy and gradient of every atom on the run's own pictures, and the true change of the
training loss without it for a sample of those that fire, the same number from every layer. Agreement is Spearman's rank
correlation over the sample. What the rankings are worth for pruning is in `experiments/lora`.
"""

from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from atomtune.analysis.importance import importance
from atomtune.tracing import trace
from experiments.common.cells import read, spread
from experiments.common.report import table
from experiments.common.steering import Config, opened, rank_agreement, setup_of

HERE = Path(__file__).parent
CHEAP = ("energy", "gradient")
MEASURES = ("energy", "energy in training", "gradient", "gradient of the sum")


def grid(quick: bool = False) -> dict[str, Config]:
    setup = setup_of(quick)
    return {name: Config(setup, name, ("draws", "ablated")) for name in setup.names}


def measure(config: Config) -> dict[str, Any]:
    """Scores of the sampled atoms by each measure, layer by layer."""
    setup, it = config.setup, opened(config.setup, config.name)
    examples = it.examples(setup.draws)
    with trace(it.board.model) as seen, torch.no_grad():
        loss = examples.losses().mean()
    generator = torch.Generator().manual_seed(0)
    among = [_sample(layer.fired > 0, setup.ablated, generator) for layer in seen.layers]
    scores = {
        "energy": importance(it.board, "energy", traced=seen),
        "gradient": importance(it.board, "gradient", loss=examples.losses),
        "gradient of the sum": importance(it.board, "gradient", loss=lambda: examples.losses().mean()),
        "ablation": importance(it.board, "ablation", loss=examples.losses, among=among),
    }
    if any(dictionary.usage.any() for dictionary in it.board.dictionaries):
        scores["energy in training"] = importance(it.board, "energy")
    with it.board.muted(*(f"L{layer}" for layer in range(len(among)))), torch.no_grad():
        without = examples.losses().mean()
    return {
        "loss": float(loss),
        "loss of the base": float(without),
        "fired": [int((layer.fired > 0).sum()) for layer in seen.layers],
        "scores": {by: [score[mask] for score, mask in zip(found, among)] for by, found in scores.items()},
    }


def _sample(fired: Tensor, count: int, generator: torch.Generator) -> Tensor:
    rows = fired.nonzero().flatten()
    mask = torch.zeros_like(fired)
    mask[rows[torch.randperm(len(rows), generator=generator)[:count]]] = True
    return mask


def agreement(cell: dict[str, Any], by: str, size: bool = False) -> float:
    """Spearman with ablation, or with the size of its change, over all sampled atoms."""
    scores, truth = (together(cell, kind) for kind in (by, "ablation"))
    return rank_agreement(scores, [abs(value) for value in truth] if size else truth)


def inside_layers(cell: dict[str, Any], by: str) -> float:
    """Mean over the layers of Spearman with ablation over the sampled atoms of one."""
    pairs = zip(cell["scores"][by], cell["scores"]["ablation"])
    return fmean(rank_agreement(scores, truth) for scores, truth in pairs if len(truth) > 2)


def together(cell: dict[str, Any], by: str) -> list[float]:
    return [score for layer in cell["scores"][by] for score in layer]


def best(found: dict[str, Any]) -> str:
    """The cheap measure that agrees best, over the things."""
    return max(CHEAP, key=lambda by: fmean(agreement(cell, by) for cell in found.values()))


def results(out: Path = HERE) -> str:
    found, rows = read(out), []
    for by in MEASURES:
        if mine := [cell for cell in found.values() if by in cell["scores"]]:
            whole = [agreement(cell, by) for cell in mine]
            inside, size = [inside_layers(cell, by) for cell in mine], [agreement(cell, by, size=True) for cell in mine]
            rows.append((by, spread(whole, 2), f"{min(whole):.2f}", spread(inside, 2), spread(size, 2)))
    return table(("measure", "agreement", "worst thing", "inside one layer", "with the size of the change"), rows)


def section(out: Path = HERE) -> str | None:
    if not (found := read(out)):
        return None
    sampled = [len(together(cell, "ablation")) for cell in found.values()]
    fired = [sum(cell["fired"]) for cell in found.values()]
    harmful = fmean(fmean(value < 0 for value in together(cell, "ablation")) for cell in found.values())
    energy, gradient = ([agreement(cell, by) for cell in found.values()] for by in CHEAP)
    ahead = sum(a > b for a, b in zip(energy, gradient))
    left_out = f"{min(sampled)} to {max(sampled)}" if min(sampled) < max(sampled) else f"{sampled[0]}"
    return f"""## Importance: which cheap measure agrees with leaving atoms out?

Energy is mean |s_m| · ‖d_m‖, gradient Σ_i |g_m ∂L_i/∂g_m|, ablation the training loss without the atom less the loss
with it. On {len(found)} things, {left_out} of the {min(fired)} to {max(fired)} atoms that fire on
the examples were left out one by one, as many from each layer. Spearman's rank correlation with ablation, mean ±
standard deviation over the things:

{results(out)}

**{best(found).capitalize()} agrees best**, so it is the default of `importance` where there is a loss and of
`atomtune prune` where the pictures are at hand; energy, which needs neither, is otherwise. Energy is ahead of gradient
on {ahead} of {len(found)} things. "Energy in training" is what an adapter carries with it, "energy"
was traced on the examples. "Gradient of the sum" is |∂ΣL_i/∂g_m|, where the examples cancel. Without an atom the loss
falls in {harmful:.0%} of the cases, which no measure of size can say: compare the last column.

![Ranks by energy and by gradient against ranks by ablation](figures/steering-importance.png)
"""
