"""moji learns the teapot in float32, bf16 and fp16, with the same images and the same noise: where do they end?

Training at moji's rates is chaotic: with top-k another atom fires where rounding puts its code above, and a LoRA's runs
part by some per cent too. So float32 is compared with itself, by other kernels of products, which round otherwise.
"""

from pathlib import Path
from typing import Any

import torch

import atomtune
from atomtune.shipped import IMAGES
from atomtune.training.steps import PRECISIONS

STEPS = 80
SEEDS = 12
OTHERWISE = "other kernels"


def measure(folder: Path, steps: int = STEPS, seeds: int = SEEDS) -> dict[str, Any]:
    """The loss on held noise after so many steps, and the mean over the last of them, by precision, one for each seed;
    and whether a second run in float32 had the same bytes."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    results: dict[str, Any] = {"steps": steps, "device": device}

    def run(name: str, seed: int, out: Path) -> dict[str, Any]:
        return atomtune.customize(
            IMAGES / "teapot", class_name="teapot", out=out, steps=steps, mixed_precision=name, preserve=False,
            sample_every=0, checkpoint_every=steps, report_to="none", device=device, seed=seed,
        )  # fmt: skip

    for name in (*PRECISIONS, OTHERWISE):
        with torch.backends.mkldnn.flags(enabled=name != OTHERWISE):
            precision = "no" if name == OTHERWISE else name
            runs = [run(precision, seed, folder / f"{name}-{seed}") for seed in range(seeds)]
        results[name] = {key: [each[key] for each in runs] for key in ("held_loss", "held_loss_before", "loss")}
        results[name]["dtype"] = runs[0]["dtype"]
        print(name, results[name], flush=True)
    run("no", 0, folder / "again")
    first, second = (
        (folder / name / "adapter" / "adapter_model.safetensors").read_bytes() for name in ("no-0", "again")
    )
    return results | {"same_bytes": first == second}
