"""Targets: the modules that are adapted in known model families, and the reasons why a module cannot carry atoms.

The paper adapts self-attention, A X W_v → A X W_v + ΔO. Three forms of that, in order of preference:

    attention atoms    σ(A X W_s) D beside the attention layer, where it is diffusers' stock one
    value projections  A (V + S D): linear atoms on every stream's values, for any other attention
    output projection  O W_o + σ(O W_s) D with O = A V: for layers that compute q, k and v in one product. Atoms on that
                       product would also change q and k, and so the map A, which eq. 8 does not change.
"""

from typing import Any

from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import TRANSFORMERS_MODELS_TO_BEFT_TARGET_MODULES_MAPPING as VALUE_PROJECTIONS
from torch import nn
from transformers.pytorch_utils import Conv1D

from atomtune.errors import UserError

TARGETS: dict[str, list[str] | str] = {
    "DiTTransformer2DModel": ["attn1"],
    "PixArtTransformer2DModel": ["attn1"],
    "UNet2DConditionModel": ["attn1"],
    # These have their own attention classes; attn2 attends to the text and is not adapted, as in the paper.
    "CogVideoXTransformer3DModel": ["attn1.to_v"],
    "HunyuanDiT2DModel": ["attn1.to_v"],
    "SanaTransformer2DModel": ["attn1.to_v"],
    "WanTransformer3DModel": ["attn1.to_v"],
    # Text and image tokens in one stream, or in two that attend to each other.
    "Lumina2Transformer2DModel": ["to_v"],
    "ZImageTransformer2DModel": ["to_v"],
    "AuraFlowTransformer2DModel": ["to_v", "add_v_proj"],
    "FluxTransformer2DModel": ["to_v", "add_v_proj"],
    "QwenImageTransformer2DModel": ["to_v", "add_v_proj"],
    "SD3Transformer2DModel": ["to_v", "add_v_proj"],
    # Its single-stream blocks have one product for q, k, v and the MLP.
    "Flux2Transformer2DModel": r".*\.(to_v|add_v_proj)|single_transformer_blocks\.\d+\.attn\.to_out",
    # PEFT's own list of value projections: Llama, Qwen, T5 and others.
    **VALUE_PROJECTIONS,
    "clip": ["v_proj"],
    "clip_text_model": ["v_proj"],
    "clip_vision_model": ["v_proj"],
    "gpt2": ["attn.c_proj"],
    "smollm3": ["v_proj"],
    "vit": ["v_proj"],
}
"""What to adapt, by the class of a diffusers model or the `model_type` of a transformers model."""

VALUES = {"to_v", "add_v_proj", "v_proj", "value", "value_proj", "v"}
OUTPUTS = {"to_out", "c_proj", "o_proj", "out_proj"}


def preset_targets(model: nn.Module) -> list[str] | str:
    """`target_modules` for a model of a known family.

    Raises `UserError`, with the modules of this model that could carry atoms, if the family is not known.
    """
    config = getattr(model, "config", None)
    for name in [*(cls.__name__ for cls in type(model).__mro__), getattr(config, "model_type", None)]:
        if name in TARGETS:
            targets = TARGETS[name]
            return targets if isinstance(targets, str) else list(targets)
    raise UserError(
        f"Please specify `target_modules`: {type(model).__name__} is not of a family that has a preset, so "
        f"{_advice(model)}."
    )


def why_not(model: nn.Module, name: str) -> str | None:
    """The reason why the module of that name cannot carry atoms, and which modules can instead; None if it can."""
    module: Any = model.get_submodule(name)
    parent = model.get_submodule(name.rpartition(".")[0])
    if isinstance(module, Attention):
        if isinstance(module.processor, BaseTunerLayer) or (reason := why_not_attention_atoms(module)) is None:
            return None
        return reason + _instead(module, name)
    if not is_linear(module):
        kind, instead = type(_unwrapped(module)).__name__, _instead(module, name)
        return f"it is a {kind}, and atoms need diffusers' Attention, an nn.Linear or a Conv1D{instead}"
    if isinstance(parent, nn.MultiheadAttention):
        return "nn.MultiheadAttention reads its weights and never calls it, so that the atoms would do nothing"
    if isinstance(parent, Attention):  # its own flag is not reset by unfusing
        fused = type(parent.processor).__name__.startswith("Fused")
    else:
        fused = getattr(parent, "fused_projections", False)
    if fused:
        return "its projections were fused, so it is not used; call unfuse_qkv_projections() first"
    return None


def why_not_attention_atoms(attn: Attention) -> str | None:
    """The reason why this attention layer cannot carry attention atoms; None if it can."""
    if type(attn.processor) not in (AttnProcessor, AttnProcessor2_0):
        return f"its processor is {type(attn.processor).__name__}, not diffusers' stock AttnProcessor2_0"
    if attn.to_v is None or attn.to_out is None:
        return "it has no value or no output projection"
    if attn.inner_kv_dim != attn.inner_dim:
        return "its queries share key and value heads"
    return None


def value_projections(module: nn.Module, name: str = "") -> list[str]:
    """The value projections in `module`, or else its output projections, as `target_modules` would name them.

    `name` is where the module sits: a projection is named with its parent, "attn1.to_v".
    """
    linear = [(*name.split("."), *inner.split("."))[-2:] for inner, layer in module.named_modules() if is_linear(layer)]
    found = [path for path in linear if path[-1] in VALUES] or [path for path in linear if path[-1] in OUTPUTS]
    return list(dict.fromkeys(".".join(path).lstrip(".") for path in found))


def _advice(model: nn.Module) -> str:
    attention = dict.fromkeys(
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, Attention) and why_not_attention_atoms(module) is None
    )
    values = value_projections(model)
    if attention:
        return f"set it to {_quoted(attention)} for attention atoms, or to {_quoted(values)} for linear atoms"
    if values:
        return f"set it to {_quoted(values)} for linear atoms"
    if linear := [name for name, layer in model.named_modules() if is_linear(layer)]:
        return f"set it to some of its {len(linear)} linear layers, such as {_quoted(linear[:4])}"
    return "it has no attention module or linear layer that could carry atoms"


def _instead(module: nn.Module, name: str) -> str:
    values = value_projections(module, name)
    return f"; target {_quoted(values)} for linear atoms instead" if values else ""


def _unwrapped(module: Any) -> nn.Module:
    while isinstance(module, BaseTunerLayer):
        module = module.get_base_layer()
    return module


def is_linear(module: nn.Module) -> bool:
    """Whether linear atoms can go beside the module: an `nn.Linear`, or GPT-2's `Conv1D`, also inside an adapter."""
    return isinstance(_unwrapped(module), (nn.Linear, Conv1D))


def _quoted(names: Any) -> str:
    return " and ".join(f'"{name}"' for name in names)
