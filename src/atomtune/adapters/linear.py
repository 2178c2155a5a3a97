"""Linear atoms: y + σ(x W_s) D beside any `nn.Linear`, and beside GPT-2's `Conv1D`, a linear layer of another name.

On the value projection this is A(V + S D): every head mixes the same code. It adds no work to attention, and works
with any attention kernel, rotary embedding, grouped queries, KV cache and architecture.
"""

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from atomtune.adapters.layer import AtomLayer


class LinearAtoms(nn.Module, AtomLayer):
    """Wraps `base_layer` as PEFT's layers do, and adds the ΔO of every active adapter to its output."""

    def __init__(self, base_layer: nn.Linear | Conv1D) -> None:
        super().__init__()
        self.base_layer = base_layer
        if isinstance(base_layer, Conv1D):  # its weight is [in, out]
            self.in_features, self.out_features = base_layer.nx, base_layer.nf
        else:
            self.in_features, self.out_features = base_layer.in_features, base_layer.out_features
        self.atoms_dictionaries = nn.ModuleDict()

    def forward(self, x: Float[Tensor, "*batch width"], *args: Any, **kwargs: Any) -> Float[Tensor, "*batch out"]:
        output = self.base_layer(x, *args, **kwargs)
        for name in self.active():
            output = output + self.dictionary(name)(x).to(output.dtype)
        return output
