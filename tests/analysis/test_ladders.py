"""The steps of fewer atoms."""

import pytest
from peft import get_peft_model

from atomtune import AtomConfig, board
from atomtune.analysis import ladders
from tests.adapters.tiny import transformer


def test_numbers_of_atoms_are_fewer_than_there_are():
    assert ladders.counts(100) == [4, 12, 40]
    assert ladders.counts(4) == []


@pytest.mark.parametrize("activation", ["topk", "batch_topk"])
@pytest.mark.parametrize("density, k", [(0.5, [1, 2, 4, 8, 16]), (0.25, [1, 2, 4, 8, 16]), (2 / 16, [1, 2, 4, 8])])
def test_densities_give_different_numbers_of_atoms_and_the_trained_one_is_among_them(activation, density, k):
    config = AtomConfig(target_modules=["attn1"], num_atoms=16, density=density, activation=activation)
    atoms = board(get_peft_model(transformer(), config))
    found = ladders.densities(atoms)
    assert density in found and found == sorted(found)
    assert [max(1, round(16 * each)) for each in found] == k


def test_a_sigma_without_a_density_has_no_steps_of_it():
    config = AtomConfig(target_modules=["attn1"], num_atoms=16, activation="soft", threshold=0.1)
    assert ladders.densities(board(get_peft_model(transformer(), config))) == []
