"""What is timed: real model classes at their real widths, with few blocks and random weights, and inputs for a step."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import PixArtTransformer2DModel
from torch import Tensor, nn

import atomtune
from atomtune.sizes import Size

SELF = ["attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0"]


@dataclass(frozen=True)
class Case:
    """One model and its inputs. The first input wants a gradient, so that a frozen model has a backward pass too."""

    title: str
    build: Callable[[], nn.Module]
    inputs: Callable[[], dict[str, Any]]
    attention: list[str] | None
    """Attention layers as a whole; None where atoms sit on linear layers alone."""
    values: list[str]
    linear: list[str]
    """The layers of LoRA, DoRA and OFT."""


def pixart(side: int, blocks: int = 2, heads: int = 16) -> nn.Module:
    """PixArt-Σ with so many blocks, for images of 16 · side pixels; with fewer heads it is narrower."""
    return PixArtTransformer2DModel(
        num_attention_heads=heads, attention_head_dim=72, num_layers=blocks, cross_attention_dim=72 * heads,
        out_channels=8, caption_channels=4096, sample_size=2 * side, interpolation_scale=2, in_channels=4,
        use_additional_conditions=False,
    )  # fmt: skip


def pixart_inputs(side: int) -> dict[str, Any]:
    return {
        "hidden_states": torch.randn(1, 4, 2 * side, 2 * side),
        "encoder_hidden_states": torch.randn(1, 120, 4096),
        "timestep": torch.tensor([500]),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
    }


def narrow(heads: int) -> Case:
    """Two blocks of PixArt-Σ with so many heads, 256 tokens."""
    return Case("", lambda: pixart(16, heads=heads), lambda: pixart_inputs(16), None, ["attn1.to_v"], SELF)


def moji() -> nn.Module:
    pipe: Any = atomtune.load_base("moji")
    return pipe.transformer


def moji_inputs() -> dict[str, Any]:
    from atomtune.bases.families import family_of
    from atomtune.training.encoding import collate, encode_caption

    pipe: Any = atomtune.load_base("moji")
    batch = 5
    captions = [encode_caption(pipe, "a sks teapot on a red background", Size.of(64))] * batch
    conditioning = collate(captions, family_of(pipe))
    return {"hidden_states": torch.randn(batch, 4, 16, 16), "timestep": torch.tensor([500] * batch), **conditioning}


def smollm2() -> nn.Module:
    """Four layers of SmolLM2-135M, with a small vocabulary."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes: dict[str, Any] = {"hidden_size": 576, "intermediate_size": 1536, "vocab_size": 1024, "num_hidden_layers": 4}
    return LlamaForCausalLM(LlamaConfig(num_attention_heads=9, num_key_value_heads=3, **sizes))


def smollm2_inputs() -> dict[str, Any]:
    return {"inputs_embeds": torch.randn(1, 512, 576)}


CASES = {
    "pixart-1024": Case(
        "PixArt-Σ, two blocks, 1024 tokens (512 px)", lambda: pixart(32), lambda: pixart_inputs(32), ["attn1"],
        ["attn1.to_v"], SELF,
    ),
    "pixart-4096": Case(
        "PixArt-Σ, two blocks, 4096 tokens (1024 px)", lambda: pixart(64), lambda: pixart_inputs(64), ["attn1"],
        ["attn1.to_v"], SELF,
    ),
    "pixart-sigma": Case(
        "PixArt-Σ, all 28 blocks, 4096 tokens (1024 px)", lambda: pixart(64, 28), lambda: pixart_inputs(64), ["attn1"],
        ["attn1.to_v"], SELF,
    ),
    "moji": Case("moji, batch of 5, 64 tokens each", moji, moji_inputs, ["attn1"], ["attn1.to_v"], SELF),
    "smollm2": Case(
        "SmolLM2-135M, four layers, 512 tokens", smollm2, smollm2_inputs, None, ["v_proj"],
        ["q_proj", "k_proj", "v_proj", "o_proj"],
    ),
}  # fmt: skip


SIZES = {
    "moji": CASES["moji"],
    **{f"PixArt-Σ, two blocks, {72 * heads} wide": narrow(heads) for heads in (1, 2, 4, 8, 16)},
}
"""Models for which threads are counted, small and large."""
ON_CPU = [name for name in CASES if name != "pixart-sigma"]
"""Those that two cores can hold and time."""


def output(model: nn.Module, inputs: dict[str, Any]) -> Tensor:
    return model(**inputs, return_dict=False)[0]
