"""A run whose numbers are no numbers any more says in which layer it began, and keeps its weights."""

import math
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

import atomtune
from atomtune.adapters import AtomConfig, adapted_layers
from atomtune.training import diverging, steps
from atomtune.training.checkpoints import newest_checkpoint
from tests.training.quick import QUICK


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


@pytest.mark.parametrize("broken", [0, 2])
def test_the_layer_that_answers_with_nan_first_is_named(broken):
    model = get_peft_model(Small(), AtomConfig(target_modules=["0", "1", "2"], num_atoms=4, density=1.0))
    adapted_layers(model)[broken].dictionary("default").decoder.weight.data.fill_(math.inf)
    places = diverging.first_output(model, lambda: model(torch.ones(2, 4)))
    assert diverging.described(model, *places) == f"first in L{broken} (blocks.{broken})"
    adapted_layers(model)[broken].dictionary("default").decoder.weight.data.fill_(0.0)
    assert diverging.first_output(model, lambda: model(torch.ones(2, 4))) == (-1, -1)


def test_of_other_methods_and_of_the_base_the_layer_has_its_own_name():
    model: Any = get_peft_model(Small(), LoraConfig(r=2, target_modules=["1"]))
    model.base_model.model.blocks[1].lora_B["default"].weight.data.fill_(math.nan)
    places = diverging.first_output(model, lambda: model(torch.ones(2, 4)))
    assert diverging.described(model, *places) == "first in blocks.1"
    model.base_model.model.blocks[1].lora_B["default"].weight.data.fill_(1.0)
    model.base_model.model.blocks[2].weight.data.fill_(math.nan)
    places = diverging.first_output(model, lambda: model(torch.ones(2, 4)))
    assert diverging.described(model, *places) == "first in blocks.2, after blocks.1"


def test_the_gradient_that_broke_first_is_that_of_the_last_layer():
    model = get_peft_model(Small(), AtomConfig(target_modules=["0", "1", "2"], num_atoms=4))
    assert diverging.first_gradient(model) == -1
    for layer in adapted_layers(model)[:2]:
        weight = layer.dictionary("default").decoder.weight
        weight.grad = torch.full_like(weight, math.nan)
    assert diverging.described(model, diverging.first_gradient(model)) == "first in L1 (blocks.1)"


def test_a_gradient_that_is_not_a_number_changes_no_weights(run, monkeypatch, tmp_path):
    """As an infinite second derivative would make it: the loss itself is fine."""
    loss = steps.prediction_loss
    left = [3]

    def broken(prediction, noised):
        left[0] -= 1
        found = loss(prediction, noised)
        return found + (prediction * 0).abs().sqrt().sum() if left[0] == 0 else found

    monkeypatch.setattr(steps, "prediction_loss", broken)
    with pytest.raises(atomtune.UserError, match=r"the gradient is not a number any more, first in L\d+ .*, at step 3"):
        run()
    assert str(newest_checkpoint(tmp_path / "run" / "checkpoints")).endswith("step-000002")
    monkeypatch.undo()
    assert run()["steps"] == QUICK["steps"]
