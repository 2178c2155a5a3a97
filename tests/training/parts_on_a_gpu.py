"""A whole run with class images on a GPU that is not there; prints what worked and which parts were on the GPU then.

python -m tests.training.parts_on_a_gpu BASE IMAGES OUT [OFFLOAD]
"""

import gc
import json
import sys
import weakref
from typing import Any

import torch

import atomtune
from atomtune import bases
from tests.fake_gpu.card import Card

# A module inside each part, which runs when the part has been brought: the part it belongs to, and what it does.
INSIDE = {"T5Stack": "reads a prompt", "Encoder": "encodes", "Decoder": "decodes", "PatchEmbed": "denoises"}


def main(base: str, images: str, out: str, offload: str = "") -> None:
    loaded: list[tuple[str, Any]] = []
    found: set[tuple[str, str]] = set()
    load = bases.BaseParts.load

    def remembered(self: bases.BaseParts, kind: str, dtype: torch.dtype | None = None) -> None:
        load(self, kind, dtype)
        loaded.extend((name, weakref.ref(getattr(self.pipe, name))) for name in self._names(kind))

    def look(module: torch.nn.Module, _inputs: Any) -> None:
        planned = any(parameter.is_meta for parameter in module.parameters())  # without values, by `atomtune.planning`
        if (does := INSIDE.get(type(module).__name__)) is not None and not planned:
            parts = [(name, part) for name, reference in loaded if (part := reference()) is not None]
            there = {name for name, part in parts if next(part.parameters()).device.type == "gpu"}
            found.add((does, ", ".join(sorted(there))))

    gc.disable()  # nothing may wait for it
    bases.BaseParts.load = remembered
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
