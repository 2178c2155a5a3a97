"""AtomBoard: what it counts, and its dials."""

from types import SimpleNamespace

import pytest
import torch
from peft import get_peft_model

from atomtune.atoms import board
from atomtune.errors import UserError
from tests.adapters.tiny import atom_config, run, transformer, wake


def test_a_board_counts_atoms_and_layers_of_one_adapter():
    model = get_peft_model(transformer(), atom_config())
    model.add_adapter("other", atom_config(num_atoms=5, target_modules=["attn2.to_v"]))
    assert (len(board(model)), board(model).num_atoms, len(board(model).layers)) == (36, 36, 2)
    assert len(board(model, "other")) == 10


def test_a_board_opens_on_a_pipeline_too():
    model = get_peft_model(transformer(), atom_config())
    for part in ("transformer", "unet"):
        assert len(board(SimpleNamespace(**{part: model}))) == 36


def test_setting_the_density_is_training_with_that_density_at_the_same_weights():
    model = wake(get_peft_model(transformer(), atom_config(density=0.2)))
    atoms = board(model)
    assert atoms.density == 0.2
    before = run(model)
    atoms.density = 0.1
    assert atoms.density == 0.1
    sparser = wake(get_peft_model(transformer(), atom_config(density=0.1)))
    sparser.load_state_dict(model.state_dict())
    assert torch.equal(run(model), run(sparser))
    atoms.density = 0.2
    assert torch.equal(run(model), before)


def test_where_layers_differ_the_density_is_the_mean_over_atoms():
    atoms = board(get_peft_model(transformer(), atom_config(density=0.2)))
    atoms.layers[0].set_density("default", 0.4)
    assert atoms.density == pytest.approx(0.3)


def test_bad_densities_and_missing_adapters_are_sentences():
    model = get_peft_model(transformer(), atom_config())
    with pytest.raises(UserError, match=r"density must be in \(0, 1\], got 4. Did you mean 0.04 \(4 %\)\?"):
        board(model).density = 4.0
    with pytest.raises(UserError, match="carries no atoms under the name 'style': attach or load an adapter"):
        board(model, "style")
