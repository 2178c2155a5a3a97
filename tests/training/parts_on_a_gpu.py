"""A whole run with class images on a GPU that is not there; prints what worked and which parts were on the GPU then.

python -m tests.training.parts_on_a_gpu BASE IMAGES OUT [OFFLOAD]
"""

import json
import sys
from typing import Any

import torch

import atomtune
from atomtune import bases
from tests.fake_gpu.card import Card

# A module inside each part, which runs when the part has been brought: the part it belongs to, and what it does.
INSIDE = {"T5Stack": "reads a prompt", "Encoder": "encodes", "Decoder": "decodes", "PatchEmbed": "denoises"}


def main(base: str, images: str, out: str, offload: str = "") -> None:
    opened: list[Any] = []
    found: set[tuple[str, str]] = set()
    parted = bases.BaseParts

    def remembered(*arguments: Any) -> Any:
        base = parted(*arguments)
        opened.append(base.pipe)
        return base

    def look(module: torch.nn.Module, _inputs: Any) -> None:
        planned = any(parameter.is_meta for parameter in module.parameters())  # without values, by `atomtune.planning`
        if (does := INSIDE.get(type(module).__name__)) is not None and not planned:
            parts = [(name, part) for name, part in opened[0].components.items() if isinstance(part, torch.nn.Module)]
            there = [name for name, part in parts if next(part.parameters()).device.type == "gpu"]
            found.add((does, ", ".join(sorted(there))))

    setattr(bases, "BaseParts", remembered)  # noqa: B010  pyright knows a class there
    torch.nn.modules.module.register_module_forward_pre_hook(look)
    options: dict[str, Any] = {"prior_preservation": True, "num_class_images": 1, "report_to": "none", "num_atoms": 8}
    options |= {"offload": offload or None}
    with Card():
        numbers = atomtune.customize(
            images, base=base, out=out, class_name="dog", steps=1, device="gpu", mixed_precision="no", **options
        )
    print(json.dumps({"found": sorted(found), "device": numbers["device"], "dtype": numbers["dtype"]}))


if __name__ == "__main__":
    main(*sys.argv[1:])
