"""moji learns the teapot in float32, bf16 and fp16, with the same images and the same noise: where do they end?"""

from pathlib import Path
from typing import Any

import torch

import atomtune
from atomtune.shipped import IMAGES
from atomtune.training.steps import PRECISIONS

STEPS = 80


def measure(folder: Path, steps: int = STEPS) -> dict[str, Any]:
    """The loss on held noise after so many steps, and the mean over the last of them, by precision; and whether a
    second run in float32 had the same bytes."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    results: dict[str, Any] = {"steps": steps, "device": device}
    weights = []
    for name in ("no", "no", *list(PRECISIONS)[1:]):
        out = folder / f"{name}-{len(weights)}"
        summary = atomtune.customize(
            IMAGES / "teapot", class_name="teapot", out=out, steps=steps, mixed_precision=name, preserve=False,
            sample_every=0, checkpoint_every=steps, report_to="none", device=device,
        )  # fmt: skip
        weights.append((out / "adapter" / "adapter_model.safetensors").read_bytes())
        results[name] = {key: summary[key] for key in ("held_loss", "held_loss_before", "loss", "dtype")}
        print(name, results[name], flush=True)
    return results | {"same_bytes": weights[0] == weights[1]}
