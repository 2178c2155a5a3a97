"""A PixArt-Σ transformer of the real class, in miniature, and inputs for it."""

from typing import Any

import torch
from diffusers import PixArtTransformer2DModel

from atomtune.adapters import AtomConfig, adapted_layers

CONFIG: dict[str, Any] = {
    "num_attention_heads": 4,
    "attention_head_dim": 8,
    "in_channels": 4,
    "out_channels": 8,
    "num_layers": 2,
    "cross_attention_dim": 32,
    "caption_channels": 16,
    "sample_size": 8,
    "patch_size": 2,
    "attention_bias": True,
    "norm_type": "ada_norm_single",
    "norm_elementwise_affine": False,
    "norm_eps": 1e-6,
    "use_additional_conditions": False,
}
"""PixArt-Σ's own settings but for the sizes."""


def transformer(dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: Any = PixArtTransformer2DModel(**CONFIG | options)
        return model.to(dtype).eval()


def inputs(dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    mask = torch.ones(2, 5)
    mask[1, 3:] = 0
    return {
        "hidden_states": torch.randn(2, 4, 8, 8, generator=generator).to(dtype),
        "encoder_hidden_states": torch.randn(2, 5, 16, generator=generator).to(dtype),
        "encoder_attention_mask": mask.to(dtype),
        "timestep": torch.tensor([30, 700]),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
    }


def run(model: Any, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return model(**inputs(dtype), return_dict=False)[0]


def atom_config(**options: Any) -> AtomConfig:
    """18 atoms on 4 heads: not divisible."""
    return AtomConfig(**{"target_modules": ["attn1"], "num_atoms": 18, "density": 0.2} | options)


def wake(model: Any, adapter: str = "default", seed: int = 0) -> Any:
    """Give the atoms directions; they start at zero."""
    generator = torch.Generator().manual_seed(seed)
    for layer in adapted_layers(model, adapter):
        layer.dictionary(adapter).decoder.weight.data.normal_(generator=generator)
    return model
