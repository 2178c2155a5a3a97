"""Convert a LoRA into atoms, so that the board, importance, influence and pruning work on its rank-1 components.

    LoRA            y + α/r · (x Aᵀ) Bᵀ            A [r, C_i], B [C_o, r], beside GPT-2's `Conv1D` too
    linear atoms    y + σ(x W_s) D                 W_s = Aᵀ, D = α/r · Bᵀ, M = r, density 1: σ is the identity

Component m is atom m: its code a_m · x is dense, every token uses all of them. The split of BA into r components is not
unique, (BR)(R⁻¹A) is the same LoRA. `principal` chooses a unique one: the singular directions of BA, which are
orthogonal, largest first, with the square root of the singular value on either side.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from atomtune.adapters import AtomConfig, adapted_layers
from atomtune.adapters.targets import is_linear
from atomtune.errors import UserError

if TYPE_CHECKING:
    from peft import PeftModel

_ONLY_PLAIN = "only plain LoRA becomes atoms"


def lora_to_atoms(model: PeftModel, adapter: str = "default", principal: bool = False) -> PeftModel:
    """Replace the LoRA of a model by linear atoms of density 1 that add exactly the same, under the same adapter name.

    `model` loses the LoRA, and must have no other adapter. Raises `UserError`, see `refuse_other_than_lora`.
    """
    from peft import get_peft_model
    from peft.tuners.lora import LoraLayer

    refuse_other_than_lora(model, adapter)
    factors: dict[str, tuple[Tensor, Tensor]] = {}
    for name, layer in model.get_base_model().named_modules():
        if isinstance(layer, LoraLayer):
            A, B = (part[adapter].weight.detach().clone() for part in (layer.lora_A, layer.lora_B))  # pyright: ignore
            factors[name] = singular_directions(A, B, layer.scaling[adapter]) if principal else (
                A, layer.scaling[adapter] * B
            )  # fmt: skip
    ranks = {name: len(A) for name, (A, _) in factors.items()}
    target: Any = list(factors)
    atoms = AtomConfig(target_modules=target, num_atoms=max(ranks.values()), num_atoms_pattern=ranks, density=1.0)
    adapted = get_peft_model(model.unload(), atoms, adapter_name=adapter)  # pyright: ignore
    with torch.no_grad():
        for layer, (A, B) in zip(adapted_layers(adapted, adapter), factors.values(), strict=True):
            dictionary = layer.dictionary(adapter)
            dictionary.encoder.weight.copy_(A)
            dictionary.decoder.weight.copy_(B.T)
    return adapted.eval()


def refuse_other_than_lora(model: PeftModel, adapter: str = "default") -> None:
    """Raise `UserError` unless `model` has this LoRA and no other adapter, and the LoRA is plain: no DoRA, no biases,
    no convolutions."""
    from peft import LoraConfig
    from peft.tuners.lora import LoraLayer

    config = model.peft_config.get(adapter)
    if not isinstance(config, LoraConfig) or len(model.peft_config) != 1:
        raise UserError(
            f"expected a model with the LoRA {adapter!r} and no other adapter, got {sorted(model.peft_config)} of "
            f"{type(config).__name__ if config else 'another name'}: load the LoRA alone."
        )
    more = (config.use_dora, config.lora_bias, config.bias != "none", config.modules_to_save)
    if any(more) or config.trainable_token_indices or config.target_parameters:
        raise UserError(f"this LoRA is more than B A x (DoRA, biases, tokens or whole modules): {_ONLY_PLAIN}.")
    for name, layer in model.get_base_model().named_modules():
        if not isinstance(layer, LoraLayer):
            continue
        if not is_linear(layer.get_base_layer()):
            raise UserError(f"{name} is a {type(layer.get_base_layer()).__name__}: only linear layers carry atoms.")
        if adapter in layer.merged_adapters:
            raise UserError(f"the LoRA {adapter!r} is merged into the base weights: call unmerge_adapter() first.")
        if variant := layer.lora_variant.get(adapter):
            raise UserError(f"{name} has a {type(variant).__name__}, which may be more than B A x: {_ONLY_PLAIN}.")


def singular_directions(
    A: Float[Tensor, "rank width"], B: Float[Tensor, "out rank"], scaling: float
) -> tuple[Float[Tensor, "rank width"], Float[Tensor, "out rank"]]:
    """√Σ Vᵀ and U √Σ of `scaling` · BA = U Σ Vᵀ, without forming BA: QR of both sides, and the SVD of what is left."""
    left, inner_left = torch.linalg.qr(B.double())
    right, inner_right = torch.linalg.qr(A.double().T)
    U, S, Vh = torch.linalg.svd(scaling * inner_left @ inner_right.T)
    return (S.sqrt()[:, None] * (right @ Vh.T).T).to(A), (left @ U * S.sqrt()).to(B)
