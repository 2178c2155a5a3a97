"""moji learns the teapot in float32, bf16 and fp16, with the same images and the same noise: where do they end?

Training at moji's rates is chaotic: with top-k another atom fires where rounding puts its code above, and a LoRA's runs
part by some per cent too. So float32 is compared with itself, by other kernels of products, which round otherwise.
"""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

import atomtune
from atomtune.shipped import IMAGES
from atomtune.training.steps import PRECISIONS

STEPS = 80
SEEDS = 130
OTHERWISE = "other kernels"
CONTROLS = 12
"""Seeds of which float32 is compared with itself."""
LOSSES = ("held_loss", "held_loss_before", "loss")
PRODUCTS = (torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.aten.bmm.default)


class SumsInFloat32(TorchDispatchMode):
    """Matrix products of float16 numbers, summed in float32 and rounded once, as cards and processors that have fp16 do
    it. A CPU that has none takes fifteen times as long for a product."""

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func not in PRODUCTS or args[-1].dtype != torch.float16:
            return func(*args, **(kwargs or {}))
        return func(*tree_map_only(torch.Tensor, torch.Tensor.float, args), **(kwargs or {})).half()


def measure(folder: Path, before: dict[str, Any] | None, seeds: int = SEEDS) -> Iterator[dict[str, Any]]:
    """The loss on held noise after so many steps, and the running mean of training's, by precision, one for each seed,
    after each seed; and whether a second run in float32 had the same bytes. Goes on from what was measured `before`."""
    device = "cuda" if torch.cuda.is_available() else "cpu"

    def run(name: str, seed: int, out: Path) -> dict[str, Any]:
        precision = "no" if name == OTHERWISE else name
        sums = SumsInFloat32() if name == "fp16" and device == "cpu" else nullcontext()
        with torch.backends.mkldnn.flags(enabled=name != OTHERWISE), sums:
            return atomtune.customize(
                IMAGES / "teapot", class_name="teapot", out=out, steps=STEPS, mixed_precision=precision,
                preserve=False, sample_every=0, checkpoint_every=STEPS, report_to="none", device=device, seed=seed,
            )  # fmt: skip

    if before and (before["steps"], before["device"]) == (STEPS, device):
        results = before
    else:
        for name in ("one", "again"):
            run("no", 0, folder / name)
        one, again = ((folder / name / "adapter" / "adapter_model.safetensors") for name in ("one", "again"))
        results = {"steps": STEPS, "device": device, "same_bytes": one.read_bytes() == again.read_bytes()}
        results |= {name: {key: [] for key in LOSSES} for name in (*PRECISIONS, OTHERWISE)}
    for seed in range(len(results["no"]["loss"]), seeds):
        for name in (*PRECISIONS, OTHERWISE) if seed < CONTROLS else PRECISIONS:
            found = run(name, seed, folder / f"{name}-{seed}")
            results[name]["dtype"] = found["dtype"]
            for key in LOSSES:
                results[name][key].append(found[key])
            print(seed, name, found["loss"], found["held_loss"], flush=True)
        if seed:  # a spread needs two
            yield results
