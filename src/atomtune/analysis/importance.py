"""Importance: one score for each atom, by which atoms are ranked, kept and pruned.

    energy      mean |s_m| · ‖d_m‖          how much the atom adds to its layer's output; free, from training or a trace
    gradient    Σ_i |g_m ∂L_i/∂g_m|          how much the loss of each example depends on the gain, to first order
    ablation    L(without m) − L             how the loss changes when the atom is dropped; exact, and slow

Within one example contributions cancel as they do in the loss. Over examples absolute values are added, because the
total gradient of a trained atom is near zero: the gain scales d_m, and training has already found the best d_m.
All atoms of all layers share one backward pass an example. An atom that never fires has gradient and ablation 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from atomtune.atoms import Layer
from atomtune.errors import UserError
from atomtune.method.dictionary import SparseDictionary
from atomtune.steering import AtomBoard, board
from atomtune.tracing import Trace, trace

Losses = Callable[[], Float[Tensor, "*examples"]]
"""Runs the model on the same examples every time it is called; returns the loss of each."""


def importance(
    model: Any,
    by: str | None = None,
    *,
    loss: Losses | None = None,
    traced: Trace | None = None,
    among: Sequence[Bool[Tensor, " atoms"]] | None = None,
    adapter: str = "default",
) -> list[Float[Tensor, " atoms"]]:
    """A score for every atom, one tensor a layer, the larger the more important: what `AtomBoard.keep(by=)` takes.

    `model` is an adapted model, a pipeline, or a board. By default the gradient, which agrees best with ablation, where
    there is a `loss`, and otherwise energy (docs/results/steering.md). Energy is that of `traced`, or else as measured
    in training, or in the last trace of this model. Gradient and ablation need `loss`, see
    `examples.training_examples` for that of a diffusion model. Ablation runs it once for each atom that fires, or for
    those in `among` (the others score 0). Raises `UserError`.
    """
    atoms = model if isinstance(model, AtomBoard) else board(model, adapter)
    by = by or ("energy" if loss is None else "gradient")
    if by == "energy":
        return atoms.mean_energy() if traced is None else _traced(atoms, traced)
    if by not in ("gradient", "ablation"):
        raise UserError(f"importance is by energy, gradient or ablation, got {by!r}.")
    if loss is None:
        raise UserError(f"importance by {by} needs a loss: give loss=training_examples(...).losses or one of yours.")
    return _gradient(atoms, loss) if by == "gradient" else _ablation(atoms, loss, among)


def _traced(atoms: AtomBoard, traced: Trace) -> list[Tensor]:
    """Energy of each atom, found by address: the trace may be older than a pruning, and have more atoms."""
    scores = []
    for dictionary in atoms.dictionaries:
        layer = traced[Layer(dictionary).address]
        rows = {id: row for row, id in enumerate(layer.ids.tolist())}
        if strangers := dictionary.id.tolist() - rows.keys():
            address = f"{layer.address}[{min(strangers)}]"
            raise UserError(
                f"there is no {address!r} in this trace: give a trace of the adapter whose atoms are to be ranked."
            )
        scores.append(layer.mean_energy[[rows[id] for id in dictionary.id.tolist()]])
    return scores


@contextmanager
def replaced_gains(dictionaries: Sequence[SparseDictionary], gains: Sequence[Tensor]) -> Iterator[None]:
    """Use other gains inside the block: tensors through which gradients flow, or tensors of `torch.func`."""
    before = [dictionary.gain for dictionary in dictionaries]
    try:
        for dictionary, gain in zip(dictionaries, gains):
            dictionary.gain = gain
        yield
    finally:
        for dictionary, gain in zip(dictionaries, before):
            dictionary.gain = gain


def _gradient(atoms: AtomBoard, loss: Losses) -> list[Tensor]:
    gains = [dictionary.gain.detach().clone().requires_grad_() for dictionary in atoms.dictionaries]
    scores = [torch.zeros_like(gain, dtype=torch.float32) for gain in gains]
    with replaced_gains(atoms.dictionaries, gains), torch.enable_grad():
        losses = loss().flatten()
        for number, each in enumerate(losses, 1):
            found = torch.autograd.grad(each, gains, retain_graph=number < len(losses), allow_unused=True)
            for score, gain, slope in zip(scores, gains, found):
                if slope is not None:
                    score += (gain.detach() * slope).abs().float() / len(losses)
    return scores


@torch.no_grad()
def _ablation(atoms: AtomBoard, loss: Losses, among: Sequence[Tensor] | None) -> list[Tensor]:
    with trace(atoms.model, atoms.adapter) as seen:
        whole = loss().double().mean()
    scores = []
    for number, dictionary in enumerate(atoms.dictionaries):
        score = torch.zeros_like(dictionary.gain, dtype=torch.float32)
        # An atom that is never selected changes nothing. A silent atom (gain 0) may be selected, and take a place.
        tested = (seen.layers[number].fired > 0) | (dictionary.gain == 0)
        kept = dictionary.kept
        present = torch.ones_like(score, dtype=torch.bool) if kept is None else kept.bool()
        tested &= present if among is None else present & among[number].to(present.device)
        try:
            for index in tested.nonzero().flatten().tolist():
                mask = present.clone()
                mask[index] = False
                dictionary.keep_only(mask)
                score[index] = loss().double().mean() - whole
        finally:
            dictionary.keep_only(None if kept is None else present)
        scores.append(score)
    return scores
