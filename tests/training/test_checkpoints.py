"""Checkpoints: any optimizer's state, exactly, without pickle."""

import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from atomtune.training import checkpoints

LEAVES = st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False) | st.text(max_size=5)
TREES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.integers(0, 9) | st.text(max_size=3), inner),
    max_leaves=10,
)


def write_nothing(folder):
    folder.mkdir()


@settings(max_examples=30)
@given(tree=TREES)
def test_any_tree_survives(tmp_path_factory, tree):
    folder = tmp_path_factory.mktemp("checkpoints")
    checkpoint = checkpoints.save_checkpoint(folder, 7, {"tree": tree}, write_nothing, keep=1)
    assert checkpoints.load_state(checkpoint) == {"step": 7, "tree": tree}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.uint8, torch.bool])
def test_tensors_survive_to_the_bit(tmp_path, dtype):
    tensor = (torch.arange(12).reshape(3, 4).T / 7).to(dtype)  # not contiguous
    state = {"a": [{0: tensor}], "b": (1, tensor.flatten()[0])}
    checkpoints.save_checkpoint(tmp_path, 1, state, write_nothing, keep=1)
    loaded = checkpoints.load_state(tmp_path / "step-000001")
    assert_close(loaded["a"][0][0], tensor, atol=0, rtol=0)
    assert_close(loaded["b"], [1, tensor.flatten()[0]], atol=0, rtol=0)


def test_only_the_newest_are_kept(tmp_path):
    for step in (5, 10, 15):
        checkpoints.save_checkpoint(tmp_path, step, {}, write_nothing, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000010", "step-000015"]
    assert checkpoints.newest_checkpoint(tmp_path) == tmp_path / "step-000015"


def test_nothing_is_unpickled(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("unpickled")

    checkpoints.save_checkpoint(tmp_path, 1, {"rate": torch.ones(2)}, write_nothing, keep=1)
    for module, name in ((pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (torch, "load")):
        monkeypatch.setattr(module, name, refuse)
    assert_close(checkpoints.load_state(tmp_path / "step-000001")["rate"], torch.ones(2))
