"""What a denoiser is given in one step, by its class: shapes of the noisy latents, the text and what else it is told.

Values matter to none of this, except masks and positions, which some denoisers read: those are real tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from atomtune.errors import UserError


@dataclass(frozen=True)
class Step:
    """The size of one step: `images` at once, latents [channels, height, width] of each, `tokens` of text."""

    images: int
    channels: int
    height: int
    width: int
    tokens: int
    dtype: torch.dtype = torch.bfloat16
    device: str = "meta"

    def tensor(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """One for each image, without values on the meta device."""
        return torch.zeros(self.images, *shape, dtype=dtype or self.dtype, device=self.device)

    def latents(self) -> Tensor:
        return self.tensor(self.channels, self.height, self.width)

    def packed(self) -> Tensor:
        """Latents as tokens of 2 × 2."""
        return self.tensor(self.height // 2 * (self.width // 2), 4 * self.channels)

    def timestep(self) -> Tensor:
        return self.tensor(dtype=torch.float32)

    def text(self, width: int) -> Tensor:
        return self.tensor(self.tokens, width)

    def mask(self) -> Tensor:
        """Every token of text is used: the longest text."""
        return torch.ones(self.images, self.tokens, dtype=torch.int64)

    def positions(self, axes: int) -> tuple[Tensor, Tensor]:
        """Of image tokens and of text tokens."""
        return torch.zeros(self.height // 2 * (self.width // 2), axes), torch.zeros(self.tokens, axes)


Config = Mapping[str, Any]


def _pixart(config: Config, step: Step) -> dict[str, Any]:
    told: dict[str, Any] = {"resolution": None, "aspect_ratio": None}
    if config.get("use_additional_conditions") or (
        config.get("use_additional_conditions") is None and config["sample_size"] == 128
    ):
        told = {"resolution": step.tensor(2), "aspect_ratio": step.tensor(1)}
    return {
        "hidden_states": step.latents(),
        "timestep": step.timestep(),
        "encoder_hidden_states": step.text(config["caption_channels"]),
        "encoder_attention_mask": step.mask(),
        "added_cond_kwargs": told,
    }


def _unet(config: Config, step: Step) -> dict[str, Any]:
    inputs: dict[str, Any] = {
        "sample": step.latents(),
        "timestep": step.timestep(),
        "encoder_hidden_states": step.text(config["cross_attention_dim"]),
    }
    if config.get("addition_embed_type") == "text_time":
        pooled = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
        inputs["added_cond_kwargs"] = {"text_embeds": step.tensor(pooled), "time_ids": step.tensor(6)}
    return inputs


def _sd3(config: Config, step: Step) -> dict[str, Any]:
    return {
        "hidden_states": step.latents(),
        "timestep": step.timestep(),
        "encoder_hidden_states": step.text(config["joint_attention_dim"]),
        "pooled_projections": step.tensor(config["pooled_projection_dim"]),
    }


def _flux(config: Config, step: Step) -> dict[str, Any]:
    image, text = step.positions(3)
    return {
        "hidden_states": step.packed(),
        "timestep": step.timestep(),
        "encoder_hidden_states": step.text(config["joint_attention_dim"]),
        "pooled_projections": step.tensor(config["pooled_projection_dim"]),
        "guidance": step.timestep() if config["guidance_embeds"] else None,
        "img_ids": image,
        "txt_ids": text,
    }


def _flux_2(config: Config, step: Step) -> dict[str, Any]:
    image, text = step.positions(4)
    return {
        "hidden_states": step.packed(),
        "timestep": step.timestep(),
        "encoder_hidden_states": step.text(config["joint_attention_dim"]),
        "guidance": step.timestep() if config["guidance_embeds"] else None,
        "img_ids": image,
        "txt_ids": text,
    }


def _qwen_image(config: Config, step: Step) -> dict[str, Any]:
    return {
        "hidden_states": step.packed(),
        "timestep": step.timestep(),
        "encoder_hidden_states": step.text(config["joint_attention_dim"]),
        "encoder_hidden_states_mask": None,
        "img_shapes": [[(1, step.height // 2, step.width // 2)]] * step.images,
    }


def _z_image(config: Config, step: Step) -> dict[str, Any]:
    return {
        "x": list(step.tensor(step.channels, 1, step.height, step.width)),
        "t": step.timestep(),
        "cap_feats": list(step.text(config["cap_feat_dim"])),
    }


def _sana(config: Config, step: Step) -> dict[str, Any]:
    return {
        "hidden_states": step.latents(),
        "timestep": step.timestep(),
        "encoder_hidden_states": step.text(config["caption_channels"]),
        "encoder_attention_mask": step.mask(),
    }


def _lumina_2(config: Config, step: Step) -> dict[str, Any]:
    return {
        "hidden_states": step.latents(),
        "timestep": step.timestep(),
        "encoder_hidden_states": step.text(config["cap_feat_dim"]),
        "encoder_attention_mask": step.mask().bool(),
    }


def _aura_flow(config: Config, step: Step) -> dict[str, Any]:
    return {
        "hidden_states": step.latents(),
        "timestep": step.timestep(),
        "encoder_hidden_states": step.text(config["joint_attention_dim"]),
    }


INPUTS: dict[str, Callable[[Config, Step], dict[str, Any]]] = {
    "PixArtTransformer2DModel": _pixart,
    "UNet2DConditionModel": _unet,
    "SD3Transformer2DModel": _sd3,
    "FluxTransformer2DModel": _flux,
    "Flux2Transformer2DModel": _flux_2,
    "QwenImageTransformer2DModel": _qwen_image,
    "ZImageTransformer2DModel": _z_image,
    "SanaTransformer2DModel": _sana,
    "Lumina2Transformer2DModel": _lumina_2,
    "AuraFlowTransformer2DModel": _aura_flow,
}


def step_inputs(name: str, config: Config, step: Step) -> dict[str, Any]:
    """Arguments of the denoiser of class `name`. Raises `UserError` for a class that is not known."""
    if name not in INPUTS:
        raise UserError(f"a step of {name} is not known: expected a denoiser of one of {', '.join(INPUTS)}.")
    return INPUTS[name](config, step)
