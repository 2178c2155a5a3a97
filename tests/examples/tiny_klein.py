"""FLUX.2-klein in miniature, of the real classes, in a folder: python -m tests.examples.tiny_klein FOLDER"""

import sys
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLFlux2,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
)
from transformers import Qwen3Config, Qwen3ForCausalLM

from tests.adapters.families import FAMILIES
from tests.tiny_pixart import AUTOENCODER
from tests.training.tiny_others import tokenizer

LAYERS = [10, 20, 30]
"""The layers of the text encoder that the benchmark reads."""


def write_tiny_klein(folder: Path) -> Path:
    """Random weights, the same each time. Images are multiples of 16 pixels; a token is 16 by 16 of them."""
    family = next(family for family in FAMILIES if family.name == "Flux.2")
    options = {"joint_attention_dim": 8 * len(LAYERS), "guidance_embeds": False}  # klein takes no guidance
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformer: Any = Flux2Transformer2DModel.from_config({**family.model().config, **options})
        autoencoder: dict[str, Any] = {key: value for key, value in AUTOENCODER.items() if key != "scaling_factor"}
        autoencoder["latent_channels"] = 1
        vae: Any = AutoencoderKLFlux2(**autoencoder)
        text_encoder = Qwen3ForCausalLM(
            Qwen3Config(
                vocab_size=32,
                hidden_size=8,
                intermediate_size=16,
                num_hidden_layers=max(LAYERS) + 1,
                num_attention_heads=2,
                num_key_value_heads=2,
                head_dim=4,
            )
        )
    vae.bn.running_mean.copy_(torch.linspace(-0.5, 0.5, 4))
    vae.bn.running_var.copy_(torch.linspace(0.5, 2, 4))
    words = tokenizer()
    words.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    Flux2KleinPipeline(scheduler, vae, text_encoder, words, transformer).save_pretrained(folder)
    return folder


if __name__ == "__main__":
    write_tiny_klein(Path(sys.argv[1]))
