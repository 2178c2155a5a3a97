"""The families of `atomtune.bases.families`, each with a pipeline of the real classes in miniature: 64 pixels, random.

`BASES` is the table that the tests of bases run through; bases_page.py prints for which of it they do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from tests.tiny_pixart import tiny_pixart
from tests.training import tiny_others

SIZE = 64  # pixels


@dataclass(frozen=True)
class Base:
    """One base that is promised to work."""

    name: str
    build: Callable[[], Any]
    real: str
    """Repository of the weights that people use."""
    learning: dict[str, Any] = field(default_factory=dict)
    """Options of `learn` in test_families.py."""

    def pipe(self) -> Any:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            pipe = self.build()
        for part in pipe.components.values():
            if isinstance(part, torch.nn.Module):
                part.eval()
        pipe.set_progress_bar_config(disable=True)
        return pipe


BASES = [
    Base("PixArt-α", tiny_others.pixart_alpha, "PixArt-alpha/PixArt-XL-2-1024-MS"),
    Base("PixArt-Σ", tiny_pixart, "PixArt-alpha/PixArt-Sigma-XL-2-1024-MS"),
    Base("Stable Diffusion 1.5", tiny_others.stable_diffusion, "stable-diffusion-v1-5/stable-diffusion-v1-5"),
    Base("Stable Diffusion XL", tiny_others.stable_diffusion_xl, "stabilityai/stable-diffusion-xl-base-1.0"),
    Base("Stable Diffusion 3", tiny_others.stable_diffusion_3, "stabilityai/stable-diffusion-3.5-medium"),
    Base("Flux.1", tiny_others.flux, "black-forest-labs/FLUX.1-dev"),
    Base("Flux.2", tiny_others.flux_2, "black-forest-labs/FLUX.2-dev"),
    Base("Flux.2 klein", tiny_others.flux_2_klein, "black-forest-labs/FLUX.2-klein-4B"),
    Base("Qwen-Image", tiny_others.qwen_image, "Qwen/Qwen-Image"),
    Base("Z-Image", tiny_others.z_image, "Tongyi-MAI/Z-Image-Turbo"),
    Base("Sana", tiny_others.sana, "Efficient-Large-Model/Sana_1600M_1024px_diffusers"),
    Base("Lumina 2", tiny_others.lumina_2, "Alpha-VLLM/Lumina-Image-2.0"),
    Base("AuraFlow", tiny_others.aura_flow, "fal/AuraFlow-v0.3"),
]
