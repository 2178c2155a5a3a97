"""How atoms are shared out."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from atomtune.adapters import AtomConfig
from atomtune.method.dictionary import SparseDictionary
from atomtune.training import configure
from atomtune.training.methods import adapt, share_out
from tests.adapters.tiny import transformer


@given(st.integers(1, 60), st.integers(1, 80))
def test_atoms_are_shared_out_evenly(layers, total):
    model = nn.Sequential(*(nn.ModuleDict({"to_v": nn.Linear(2, 2), "to_k": nn.Linear(2, 2)}) for _ in range(layers)))
    shared = share_out(total, model, AtomConfig(target_modules=["to_v"]))
    assert list(shared) == [f"{number}.to_v" for number in range(layers)]
    assert sum(shared.values()) == max(total, layers)
    assert max(shared.values()) - min(shared.values()) <= 1


@pytest.mark.parametrize("layers", [None, (1,)])
def test_total_atoms_are_those_of_the_whole_model(layers):
    config = configure(images="photos", class_name="dog", out="out", total_atoms=40, layers_to_transform=layers)
    model = adapt(transformer(), config)
    counts = [m.num_atoms for m in model.modules() if isinstance(m, SparseDictionary)]
    assert sum(counts) == 40 and len(counts) == (1 if layers else 2)
