"""What is put on a model: PEFT's methods, atoms, and the paper as it is written."""

from collections.abc import Callable
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from peft import LoraConfig, OFTConfig, get_peft_model
from torch import Tensor, nn
from torch.nn import functional as F

import atomtune
from atomtune import AtomConfig
from atomtune.adapters import adapted_layers
from atomtune.method.coding import top_k
from benchmarks.speed.models import Case

M, DENSITY, RANK = 256, 0.04, 16
KEPT = 40


def frozen(model: nn.Module, _case: Case) -> nn.Module:
    return model.requires_grad_(False)


def lora(model: nn.Module, case: Case) -> Any:
    return get_peft_model(model, LoraConfig(r=RANK, target_modules=case.linear))  # pyright: ignore[reportArgumentType]


def dora(model: nn.Module, case: Case) -> Any:
    return get_peft_model(model, LoraConfig(r=RANK, use_dora=True, target_modules=case.linear))  # pyright: ignore[reportArgumentType]


def oft(model: nn.Module, case: Case) -> Any:
    return get_peft_model(model, OFTConfig(r=4, oft_block_size=0, target_modules=case.linear))  # pyright: ignore[reportArgumentType]


def paper(model: nn.Module, case: Case) -> nn.Module | None:
    """A second attention call for the codes, and a product with all of D: A σ(X W_s) D."""
    if case.attention is None:
        return None
    model.requires_grad_(False)
    for name, module in model.named_modules():
        if isinstance(module, Attention) and name.endswith(tuple(case.attention)):
            module.set_processor(Paper(module))  # pyright: ignore[reportArgumentType]
    return model


class Paper(nn.Module):
    """The stock processor, and beside it the codes, mixed by an attention call of their own."""

    def __init__(self, attn: Attention) -> None:
        super().__init__()
        self.stock: Any = attn.get_processor()
        self.encoder = nn.Parameter(torch.randn(M, attn.inner_dim) * attn.inner_dim**-0.5)
        self.decoder = nn.Parameter(torch.randn(M, attn.inner_dim) * 0.01)

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None, temb: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        output = self.stock(attn, hidden_states, encoder_hidden_states, attention_mask, temb)
        codes = top_k(F.linear(hidden_states, self.encoder), round(DENSITY * M))
        query, key, value = (
            projected.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for projected in (attn.to_q(hidden_states), attn.to_k(hidden_states), codes)
        )
        padded = F.pad(value, (0, query.shape[-1] - value.shape[-1]))  # unequal widths are not for the fast kernel
        mixed = F.scaled_dot_product_attention(query, key, padded)[..., : value.shape[-1]]
        return output + mixed.transpose(1, 2).flatten(2) @ self.decoder


def attention(model: nn.Module, case: Case) -> Any:
    return case.attention and _awake(model, AtomConfig(target_modules=case.attention, num_atoms=M, density=DENSITY))


def linear(model: nn.Module, case: Case) -> Any:
    return _awake(model, AtomConfig(target_modules=case.values, num_atoms=M, density=DENSITY))


def pruned(model: nn.Module, case: Case) -> Any:
    """The adapter of the row above it, with as many atoms as can be looked at."""
    adapted = linear(model, case)
    board = atomtune.board(adapted)
    board.keep(KEPT, by=[torch.rand(dictionary.num_atoms) for dictionary in board.dictionaries])
    adapted.prune()
    return adapted


def _awake(model: nn.Module, config: AtomConfig) -> Any:
    """Atoms that are not zero, as after training."""
    adapted: Any = get_peft_model(model, config)  # pyright: ignore[reportArgumentType]
    for layer in adapted_layers(adapted):
        nn.init.normal_(layer.dictionary("default").decoder.weight, std=0.01)
    return adapted


METHODS: dict[str, tuple[str, Callable[[nn.Module, Case], Any]]] = {
    "frozen": ("the frozen model", frozen),
    "lora": ("LoRA, r = 16, on q, k, v and out", lora),
    "dora": ("DoRA, r = 16", dora),
    "oft": ("OFT, r = 4", oft),
    "paper": ("the paper as written: two attention calls, all of D", paper),
    "attention": ("atoms beside attention, σ(A X W_s) D", attention),
    "linear": ("atoms on the values", linear),
    "pruned": (f"atoms on the values, pruned to {KEPT} in the model", pruned),
}
