"""What `python -m benchmarks` measures, in one round of a narrow model; and that its page is that of its numbers."""

import json

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from atomtune.method.sparse import is_worthwhile
from benchmarks.reliability import page as reliability
from benchmarks.speed import measuring, page
from benchmarks.speed.models import narrow

CPU = torch.device("cpu")


def test_the_pages_are_those_of_the_numbers():
    assert page.PAGE.read_text() == page.text(json.loads(page.RESULTS.read_text()))
    numbers = reliability.PAGE.parents[2] / "benchmarks" / "reliability" / "results.json"
    assert reliability.PAGE.read_text() == reliability.text(json.loads(numbers.read_text()))


def test_the_library_leaves_out_the_zeros_where_that_was_measured_to_be_faster():
    """To a tenth: near the crossover both are as fast."""
    for each in json.loads(page.RESULTS.read_text())["cpu"]["crossover"]["products"]:
        sparse, dense = np.median(each["sparse"]), np.median(each["dense"])
        chosen = sparse if is_worthwhile(each["num_atoms"], each["k"], CPU) else dense
        assert chosen <= 1.1 * min(sparse, dense)


@pytest.mark.parametrize("grad", [False, True])
def test_attention_is_counted_on_a_cpu_as_on_a_card(grad, monkeypatch):
    """Q Kᵀ and A V are 2 · 2 N² d operations, and their backward pass, which computes Q Kᵀ again, 2 · 5 N² d."""
    q = torch.randn(1, 4, 64, 32, requires_grad=grad)
    step = measuring.Step(torch.nn.Identity(), {"q": q}, torch.float32)

    def attend() -> None:
        attended = F.scaled_dot_product_attention(q, q, q)
        if grad:
            attended.sum().backward()

    monkeypatch.setattr(step, "draw", attend)
    assert step.flops("draw") == (14 if grad else 4) * 4 * 64 * 64 * 32


@pytest.mark.slow
def test_every_method_of_a_narrow_model_is_measured():
    found = measuring.measure(narrow(1), 1, CPU, torch.float32)
    assert {"frozen", "lora", "linear"} <= found.keys()
    for name, own in found.items():
        assert len(own["train"]) == len(own["draw"]) == 1 and own["train_flops"] > own["draw_flops"] > 0
        assert name == "frozen" or own["memory"] > found["frozen"]["memory"]
