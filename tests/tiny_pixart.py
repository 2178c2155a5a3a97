"""A whole PixArt-Σ pipeline of the real classes, small enough to train in a test: 64 pixels, learned variance.

python tests/tiny_pixart.py FOLDER [SEED]
"""

import string
import sys
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, PixArtSigmaPipeline, PixArtTransformer2DModel
from peft import get_peft_model
from transformers import T5Config, T5EncoderModel, T5Tokenizer

from atomtune import AtomConfig
from atomtune.bases import call_options, denoiser, load_base, set_denoiser

WORDS = ["a", "the", "on", "of", "in", "sks", "dog", "cat", "photo", "blue", "red", "background", "snow", "beach"]
AUTOENCODER: dict[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (8, 8, 8, 8),
    "norm_num_groups": 4,
    "layers_per_block": 1,
    "latent_channels": 4,
    "scaling_factor": 0.13025,
    "sample_size": 64,
}


def tiny_t5(width: int) -> tuple[T5Tokenizer, T5EncoderModel]:
    """A tokenizer of a few words and every letter, and an encoder."""
    pieces = ["<pad>", "</s>", "<unk>", "▁", *("▁" + word for word in WORDS), *string.ascii_lowercase]
    vocabulary = [(piece, 0.0 if index < 3 else -1.0 - index / 100) for index, piece in enumerate(pieces)]
    tokenizer = T5Tokenizer(vocab=vocabulary, extra_ids=0)
    config = T5Config(vocab_size=len(tokenizer), d_model=width, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    return tokenizer, T5EncoderModel(config)


def tiny_pixart(seed: int = 0, **scheduler_options) -> PixArtSigmaPipeline:
    """The pipeline with random weights that follow from `seed`."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        tokenizer, text_encoder = tiny_t5(16)
        vae = AutoencoderKL(**AUTOENCODER)
        transformer = PixArtTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=8,
            in_channels=4,
            out_channels=8,
            num_layers=2,
            cross_attention_dim=16,
            caption_channels=16,
            sample_size=8,
            patch_size=2,
            attention_bias=True,
        )
        # PixArt starts these at zero; a trained model does not.
        torch.nn.init.normal_(transformer.proj_out.weight, std=0.1)
    scheduler: Any = DPMSolverMultistepScheduler(**scheduler_options)
    return PixArtSigmaPipeline(tokenizer, text_encoder.eval(), vae.eval(), transformer.eval(), scheduler)


def save_tiny_pixart(folder: Path, seed: int = 0, **scheduler_options) -> Path:
    """Save it as diffusers does, for `--base`."""
    tiny_pixart(seed, **scheduler_options).save_pretrained(folder)
    return folder


if __name__ == "__main__":
    save_tiny_pixart(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)


def adapted(base: str, config=None):
    """The base with an adapter that does something."""
    pipe = load_base(base)
    model = get_peft_model(denoiser(pipe), config or AtomConfig(target_modules=["attn1"], num_atoms=8))
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.5, generator=torch.Generator().manual_seed(len(name)))
    set_denoiser(pipe, model)
    return pipe


def draw(pipe) -> torch.Tensor:
    options = call_options(pipe) | {"num_inference_steps": 2, "output_type": "pt"}
    return pipe("a sks dog", generator=torch.Generator().manual_seed(0), **options).images
