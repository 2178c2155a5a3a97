"""What single atoms do, and whether it adds up: `python -m experiments.steering.influence`

On two denoiser calls for each thing: the influence of every atom that fires (the answer with it on, less with it off), its
first-order estimate, the sum of single influences against the whole block, and how much of the picture they cover. For
atoms, and for a LoRA's rank-1 components. And pictures: what the most important atoms add and take away (Fig. 1c).
"""

from statistics import fmean, median
from typing import Any

import torch
from scipy.stats import spearmanr
from torch import Tensor

from atomtune import sampling
from atomtune.analysis.importance import importance
from atomtune.analysis.influence import additivity_error, change, difference, influence, influences
from atomtune.analysis.locality import coverage, magnitude_maps
from atomtune.tracing import trace
from experiments import subjects
from experiments.cells import spread
from experiments.figures import BLUE, GREY, plt, save
from experiments.report import table
from experiments.steering.common import FIGURES, FULL, METHODS, Opened, Setup, cells, opened, run_cell

TOP = 24
"""Atoms of a layer, of the largest influence, whose nonlinearity is reported: that of tiny ones is noise over noise."""


@torch.no_grad()
def measure(setup: Setup, name: str, method: str) -> dict[str, Any]:
    """By layer of the board: nonlinearity of its largest units; by block: additivity. Coverage over all units."""
    it = opened(setup, name, method)
    examples = it.one_picture(setup.timesteps)
    values: dict[str, Any] = {"units": [], "nonlinearity": [], "block nonlinearity": [], "additivity": []}
    sizes, covered = [], []
    for addresses in blocks(it):
        full, slope = [], []
        for address in addresses:
            found = influences(it.board, address, examples.outputs)
            largest = found.size.topk(min(TOP, len(found.rows))).indices
            values["units"].append(len(found.rows))
            values["nonlinearity"].append(found.nonlinearity[largest])
            full.append(found.full)
            slope.append(found.first_order.sum(0))
            sizes.append(found.size)
            covered.append(coverage(found.full.abs().sum(2).flatten(2)).nan_to_num().mean(1))
        whole = influence(it.board, examples.outputs, *addresses)
        values["additivity"].append(additivity_error(torch.cat(full), whole))
        values["block nonlinearity"].append(additivity_error(torch.stack(slope), whole))
    values["influence coverage"] = _weighted(torch.cat(covered), torch.cat(sizes))
    values["map coverage"] = map_coverage(it, examples.outputs)
    everything = influence(it.board, examples.outputs, *(address for block in blocks(it) for address in block))
    values["additivity of everything"] = None
    values["size of everything"] = float(everything.norm() / examples.outputs().norm())
    return values


def blocks(it: Opened) -> list[list[str]]:
    """Addresses by transformer block: an attention atom adapter has one layer in each, a LoRA four."""
    found: dict[str, list[str]] = {}
    for name, module in it.board.model.named_modules():
        for layer, dictionary in zip(it.board.layers, it.board.dictionaries):
            if module is layer:
                found.setdefault(name.split(".attn1")[0], []).append(f"L{int(dictionary.layer)}")
    return list(found.values())


def map_coverage(it: Opened, call) -> float:
    """Share of the tokens that a unit's map covers, mean over units and examples weighted by their energy."""
    with trace(it.board.model, codes=True) as seen:
        call()
    covered, weights = [], []
    for layer in seen.layers:
        maps = magnitude_maps(layer).transpose(1, 2)  # [samples, atoms, tokens]
        covered.append(coverage(maps).nan_to_num().flatten())
        weights.append((maps.mean(-1) * layer.dictionary.dictionary.weight.norm(dim=0)).flatten())
    return _weighted(torch.cat(covered), torch.cat(weights))


def _weighted(values: Tensor, weights: Tensor) -> float:
    return float((values * weights).sum() / weights.sum())
