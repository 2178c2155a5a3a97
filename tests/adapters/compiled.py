"""Run by test_compile.py in a process of its own, where jaxtyping does not check shapes: compiled.py BACKEND ROOT.

Compiles an adapted PixArt-Σ transformer as one graph, compares it with the uncompiled one, changes density, scale and
gain, and swaps another adapter in: nothing may be compiled again. Inductor calls the C++ compiler for every kernel, so
it gets one attention layer.
"""

import sys
import tempfile
from collections.abc import Callable
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import torch
from peft import get_peft_model
from torch._dynamo.utils import counters
from torch.testing import assert_close

backend, root = sys.argv[1:]
sys.path.insert(0, root)

from atomtune.steering import board  # noqa: E402
from atomtune.storage.folders import load_adapter, save_adapter  # noqa: E402
from tests.adapters.tiny import atom_config, run, transformer, wake  # noqa: E402

model = wake(get_peft_model(transformer(), atom_config(target_modules=["attn1", "attn2.to_v"])))
atoms = board(model)
part: Any = model if backend == "aot_eager" else model.base_model.model.transformer_blocks[0].attn1
call: Callable = run if backend == "aot_eager" else lambda attn: attn(torch.ones(2, 16, 32).cumsum(-1).cumsum(1).sin())
compiled = torch.compile(part, backend=backend, fullgraph=True)


def gradients(module: Any) -> dict[str, torch.Tensor]:
    part.zero_grad()
    call(module).square().sum().backward()
    return {name: p.grad.clone() for name, p in part.named_parameters() if p.grad is not None}


assert_close(gradients(compiled), gradients(part), atol=1e-4, rtol=1e-4)
graphs = counters["stats"]["unique_graphs"]
before = call(part)
for density in (0.15, 0.06):
    atoms.density = density
    atoms.layers[0].set_scale("default", 0.5)
    atoms.dictionaries[0].gain[3] = 0.25
    # float32, and the compiler reorders sums, here and below
    assert_close(call(compiled), call(part), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(call(part), before)
assert counters["stats"]["unique_graphs"] == graphs == 1, dict(counters["stats"])
if backend == "aot_eager":  # another adapter of the same shape, in place
    other = wake(get_peft_model(transformer(), model.peft_config["default"]), seed=9)
    with tempfile.TemporaryDirectory() as folder:
        pipe: Any = SimpleNamespace(transformer=model, name_or_path="tiny")
        load_adapter(pipe, save_adapter(other, folder, base="tiny"), hotswap=True)
    atoms.layers[0].set_scale("default", 1.0)
    assert_close(call(compiled), call(other), atol=1e-5, rtol=1e-5)  # float32, and the compiler reorders sums
    assert counters["stats"]["unique_graphs"] == 1, dict(counters["stats"])
if backend == "aot_eager":  # the other σ: λ, gain and, where there is one, density, of an adapter, a layer, an atom
    for σ in ("batch_topk", "jumprelu", "soft"):
        model = wake(get_peft_model(transformer(), atom_config(activation=σ, density=0.3, threshold=0.1)))
        run(model.train())
        atoms, part = board(model.eval()), model
        torch._dynamo.reset()
        counters.clear()
        compiled = torch.compile(model, backend=backend, fullgraph=True)
        seen = [run(compiled).detach()]
        for change in range(3):
            atoms["L1[2]"].gain = 0.5 - change / 10
            if σ == "batch_topk":
                atoms["L0"].density = 0.2 - change / 20
            atoms.layers[0].set_scale("default", 0.5 + change)
            assert_close(run(compiled), run(part), atol=1e-5, rtol=1e-5)
            seen.append(run(compiled).detach())
        assert all(not torch.equal(a, b) for a, b in pairwise(seen)), σ
        assert counters["stats"]["unique_graphs"] == 1, (σ, dict(counters["stats"]))
print("same outputs, same gradients, one graph")
