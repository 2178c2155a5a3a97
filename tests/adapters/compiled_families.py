"""Run by test_families.py in a process of its own, without jaxtyping: compiled_families.py BACKEND ROOT NAME...

Compiles one repeated block of each class in the named families (or "all"), with atoms on it, as one graph.
"""

import sys
from typing import Any

import torch
from torch import Tensor
from torch._dynamo.utils import counters
from torch.testing import assert_close

backend, root, *names = sys.argv[1:]
sys.path.insert(0, root)

from peft import get_peft_model  # noqa: E402

from tests.adapters.families import FAMILIES, Family  # noqa: E402
from tests.adapters.tiny import atom_config, wake  # noqa: E402


def outcome(family: Family, model: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """The model's output, and the gradients of its atoms."""
    model.zero_grad()
    output = family.run(model)
    output.square().mean().backward()
    return output, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


for family in FAMILIES:
    if names != ["all"] and family.name not in names:
        continue
    print(family.name, file=sys.stderr)
    torch._dynamo.reset()
    counters.clear()
    targets = family.attention if family.carries_attention_atoms else family.linear
    model = wake(get_peft_model(family.model(), atom_config(target_modules=targets)))
    eager = outcome(family, model)
    blocks = family.blocks(model)
    for block in blocks:
        block.compile(backend=backend, fullgraph=True)
    assert_close(outcome(family, model), eager, atol=1e-4, rtol=1e-4)
    assert counters["stats"]["unique_graphs"] == len(blocks), counters["stats"]
print("same outputs, same gradients")
