"""`trace`: watch the codes while a model runs.

    with trace(model) as t:
        pipe("a sks teapot on the moon")
    t.active_per_token, t.alive, t.density

Recorded is what multiplies D, after mixing and gain: the input of each layer's `dictionary`. Only running sums are
kept, [M] numbers a layer, so the length of the run does not matter. Outside the block nothing is left in the model.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from atomtune.adapters import adapted_layers
from atomtune.dictionary import SparseDictionary
from atomtune.errors import UserError


class LayerTrace:
    """Running sums of one layer: in how many of `tokens` each atom fired, and how strongly."""

    def __init__(self, dictionary: SparseDictionary) -> None:
        self.dictionary = dictionary
        self.tokens = 0
        self.fired: Int[Tensor, " atoms"] = torch.zeros_like(dictionary.id)
        self.magnitude: Float[Tensor, " atoms"] = torch.zeros_like(dictionary.gain, dtype=torch.float32)

    @torch.no_grad()
    def record(self, _layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        codes = inputs[0].flatten(0, -2)
        self.tokens += codes.shape[0]
        self.fired += (codes != 0).sum(0)
        self.magnitude += codes.abs().sum(0, dtype=torch.float32)

    @property
    def firing_rate(self) -> Float[Tensor, " atoms"]:
        """Share of the tokens in which each atom fired."""
        return self.fired / max(1, self.tokens)

    @property
    def energy(self) -> Float[Tensor, " atoms"]:
        """Mean over tokens of |s_m| · ‖d_m‖: how much each atom adds to the layer's output."""
        return self.magnitude / max(1, self.tokens) * self.dictionary.dictionary.weight.detach().float().norm(dim=0)


class Trace:
    """Running statistics of one adapter's codes. Use as a context manager; entering it again starts from zero."""

    def __init__(self, model: nn.Module, adapter: str = "default") -> None:
        self._dictionaries = [layer.dictionary(adapter) for layer in adapted_layers(model, adapter)]
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []
        self.layers: list[LayerTrace] = []
        """One for each adapted layer, in the order of their addresses."""

    def __enter__(self) -> Trace:
        self.layers = [LayerTrace(dictionary) for dictionary in self._dictionaries]
        self._hooks = [
            layer.dictionary.dictionary.register_forward_pre_hook(layer.record, prepend=True) for layer in self.layers
        ]
        return self

    def __exit__(self, *_exception: object) -> None:
        for hook in self._hooks:
            hook.remove()

    @property
    def active_per_token(self) -> float:
        """Mean number of atoms that one token uses in one layer."""
        return self._fired / self._tokens

    @property
    def density(self) -> float:
        """Mean share of a layer's atoms that one token uses."""
        return self._fired / sum(layer.tokens * len(layer.fired) for layer in self.layers)

    @property
    def alive(self) -> int:
        """Number of atoms, over all layers, that fired at least once."""
        return sum(int((layer.fired > 0).sum()) for layer in self.layers)

    @property
    def _fired(self) -> int:
        return sum(int(layer.fired.sum()) for layer in self.layers)

    @property
    def _tokens(self) -> int:
        tokens = sum(layer.tokens for layer in self.layers)
        if tokens == 0:
            raise UserError(
                "the trace saw no tokens: run the model inside the block, uncompiled and with the adapter active."
            )
        return tokens


def trace(model: nn.Module, adapter: str = "default") -> Trace:
    """Record running statistics of an adapter's codes while the block runs. `model` is the adapted denoiser."""
    return Trace(model, adapter)
