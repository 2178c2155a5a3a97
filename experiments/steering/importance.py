"""Which cheap importance agrees with leaving atoms out one by one? `python -m experiments.steering.importance`

For each of the six things: energy and gradient of every atom on the run's own pictures, and the true change of the training
loss without it for a sample of those that fire, the same number from every layer. Agreement is Spearman's rank correlation
over the sample. Then what the ranking is for: the fidelity that is left when the best 4, 12, 40, 120 atoms are kept.
"""

from statistics import fmean
from typing import Any

import torch
from scipy.stats import spearmanr
from torch import Tensor

from atomtune.analysis.importance import importance
from atomtune.tracing import trace
from experiments.cells import spread
from experiments.figures import BLUE, GREY, ORANGE, plt, save
from experiments.report import table
from experiments.steering.common import FIGURES, FULL, Setup, cells, opened, run_cell

CHEAP = ("energy", "gradient")


def measure(setup: Setup, name: str) -> dict[str, Any]:
    """Scores of the sampled atoms by each measure, layer by layer."""
    it = opened(setup, name)
    examples = it.examples(setup.draws)
    with trace(it.board.model) as seen, torch.no_grad():
        loss = examples.losses().mean()
    generator = torch.Generator().manual_seed(0)
    among = [_sample(layer.fired > 0, setup.ablated, generator) for layer in seen.layers]
    scores = {
        "energy": importance(it.board, "energy", traced=seen),
        "gradient": importance(it.board, "gradient", loss=examples.losses),
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


def run(setup: Setup = FULL) -> None:
    used = ("draws", "ablated")
    for name in setup.names:
        run_cell(setup, "importance", name, used, lambda name=name: measure(setup, name))


def agreement(cell: dict[str, Any], by: str, inside_layers: bool = False) -> float:
    """Spearman with ablation: over all sampled atoms, or the mean of those of each layer."""
    scores, truth = cell["scores"][by], cell["scores"]["ablation"]
    if inside_layers:
        return fmean(float(spearmanr(a, b).statistic) for a, b in zip(scores, truth) if len(a) > 2)
    return float(spearmanr(sum(scores, []), sum(truth, [])).statistic)


def best(found: dict[str, Any]) -> str:
    """The cheap measure that agrees best, over the things."""
    return max(CHEAP, key=lambda by: fmean(agreement(cell, by) for cell in found.values()))


def section(folder) -> str | None:
    found = cells(folder, "importance")
    if not found:
        return None
    rows = []
    measures = [by for by in ("energy", "energy in training", "gradient") if any(by in c["scores"] for c in found.values())]
    for by in measures:
        mine = [cell for cell in found.values() if by in cell["scores"]]
        rows.append((
            by,
            spread([agreement(cell, by) for cell in mine], 2),
            spread([agreement(cell, by, inside_layers=True) for cell in mine], 2),
            f"{min(agreement(cell, by) for cell in mine):.2f}",
        ))  # fmt: skip
    sampled = [sum(map(len, cell["scores"]["ablation"])) for cell in found.values()]
    fired = [sum(cell["fired"]) for cell in found.values()]
    harmful = fmean(fmean(value < 0 for value in sum(cell["scores"]["ablation"], [])) for cell in found.values())
    winner = best(found)
    return f"""## Importance

Energy, mean |s_m| · ‖d_m‖, and gradient, Σ_i |g_m ∂L_i/∂g_m|, against leaving atoms out one by one and seeing what the
training loss becomes. On {len(found)} things; left out were {min(sampled)} to {max(sampled)} of the {min(fired)} to
{max(fired)} atoms that fire on the examples, as many from each layer. Spearman's rank correlation with the true change,
mean ± standard deviation over the things:

{table(("measure", "all layers together", "inside a layer", "worst thing"), rows)}

**{winner.capitalize()} agrees best.** Without a sampled atom the loss falls in {harmful:.0%} of the cases: on these
examples those atoms do harm, or the atom that takes a place does more good.

![Agreement of cheap importances with ablation](steering-importance.png)
"""


def figure(folder) -> None:
    found = cells(folder, "importance")
    if not found:
        return
    drawn, axes = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True)
    for axis, by, colour in zip(axes, CHEAP, (BLUE, ORANGE)):
        for cell in found.values():
            ranks = [torch.tensor(sum(cell["scores"][kind], [])).argsort().argsort() for kind in (by, "ablation")]
            axis.scatter(*(rank / max(1, len(rank) - 1) for rank in ranks), s=6, color=colour, alpha=0.5, linewidths=0)
        mean = fmean(agreement(cell, by) for cell in found.values())
        axis.plot([0, 1], [0, 1], color=GREY, linewidth=1)
        axis.set_title(f"{by}: Spearman {mean:.2f}, mean of {len(found)} things", fontsize=10)
        axis.set_xlabel(f"rank by {by} (1: the most)")
    axes[0].set_ylabel("rank by ablation (1: the most)")
    save(drawn, FIGURES / "steering-importance.png")


if __name__ == "__main__":
    run()
    figure(None)
