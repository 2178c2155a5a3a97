"""Examples: the same each time, as a batch and one by one."""

import numpy as np
import pytest
import torch
from peft import get_peft_model
from PIL import Image
from torch.testing import assert_close

from atomtune.analysis.examples import training_examples
from atomtune.analysis.importance import importance
from atomtune.steering import board
from tests.adapters.tiny import atom_config, wake
from tests.tiny_pixart import tiny_pixart


@pytest.fixture
def examples(tmp_path):
    for number in range(2):
        pixels = np.random.default_rng(number).integers(0, 256, (64, 64, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    pipe = tiny_pixart()
    pipe.transformer = wake(get_peft_model(pipe.transformer, atom_config()))
    return training_examples(pipe, tmp_path, "a sks dog", draws=2, resolution=64)


def test_examples_are_the_same_each_time_and_one_by_one(examples):
    losses = examples.losses()
    assert len(losses) == 4 and torch.equal(losses, examples.losses())
    assert_close(torch.cat([one.losses() for one in examples.one_by_one()]), losses)


def test_importance_by_gradient_is_the_mean_over_single_examples(examples):
    atoms = board(examples.pipe)
    each = [importance(atoms, loss=one.losses) for one in examples.one_by_one()]
    for whole, *parts in zip(importance(atoms, "gradient", loss=examples.losses), *each):
        assert_close(torch.stack(parts).mean(0), whole)
