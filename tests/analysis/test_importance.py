"""importance against the plain formulas, in float64."""

import pytest
import torch
from peft import get_peft_model
from torch.testing import assert_close

from atomtune.analysis.importance import importance
from atomtune.errors import UserError
from atomtune.steering import board
from atomtune.tracing import trace
from tests.adapters.tiny import atom_config, inputs, transformer, wake

KINDS = [{}, {"mix_first": False}, {"target_modules": ["to_v"]}, {"activation": "soft"}]


def adapted(**options):
    model = wake(get_peft_model(transformer(torch.float64), atom_config(**options)).double())
    given = inputs(torch.float64)

    def loss():
        return model(**given, return_dict=False)[0].square().mean((1, 2, 3))

    return model, loss


def test_energy_is_what_training_measured_or_a_trace():
    model, loss = adapted()
    with pytest.raises(UserError, match="run a few examples like yours while it is traced"):
        importance(model)
    for dictionary in board(model).dictionaries:
        dictionary.usage.uniform_()
        D = dictionary.decoder.weight
        assert_close(importance(model)[int(dictionary.layer)], dictionary.usage * D.norm(dim=1).float())
        break
    with trace(model) as seen:
        loss()
    for score, layer in zip(importance(model, traced=seen), seen.layers):
        assert_close(score, layer.mean_energy)


@pytest.mark.parametrize("options", KINDS)
def test_gradient_is_the_slope_of_each_examples_loss_in_the_gain(options):
    model, loss = adapted(**options)
    atoms = board(model)
    atoms["L0"].gain = torch.linspace(0.5, 1.5, 18)
    scores = importance(atoms, "gradient", loss=loss)
    step = 1e-6
    for dictionary, score in zip(atoms.dictionaries, scores):
        expected = torch.zeros(18, dtype=torch.float64)
        for m in range(18):
            g = dictionary.gain[m].item()
            with torch.no_grad():
                dictionary.gain[m] = g + step
                above = loss()
                dictionary.gain[m] = g - step
                slope = (above - loss()) / (2 * step)
                dictionary.gain[m] = g
            expected[m] = (g * slope).abs().mean()
        assert_close(score.double(), expected, atol=1e-7, rtol=1e-4)
    assert not any(dictionary.gain.requires_grad for dictionary in atoms.dictionaries)


@pytest.mark.parametrize("options", KINDS)
def test_ablation_is_the_loss_without_the_atom_less_the_loss(options):
    model, loss = adapted(**options)
    atoms = board(model)
    atoms.drop(["L0[3]"])
    scores = importance(model, "ablation", loss=loss)
    assert atoms["L0[3]"].kept is False and len(atoms.kept) == len(atoms) - 1  # as before
    assert scores[0][3] == 0
    whole = loss().mean()
    for atom in atoms:
        if atom.address != "L0[3]":
            atoms.drop([atom.address])
            expected = (loss().mean() - whole).float().detach()
            atoms.reset()
            atoms.drop(["L0[3]"])
            assert_close(scores[int(atom.dictionary.layer)][atom.index], expected, atol=1e-9, rtol=1e-5)


def test_ablation_of_a_sample_leaves_the_others_at_zero():
    model, loss = adapted()
    every = importance(model, "ablation", loss=loss)
    among = [torch.arange(18) % 3 == 0, torch.zeros(18, dtype=torch.bool)]
    some = importance(model, "ablation", loss=loss, among=among)
    assert_close(some[0], every[0] * among[0])
    assert not some[1].any()


def test_a_silent_atom_may_hold_a_place_that_another_would_take():
    model, loss = adapted()
    atoms = board(model)
    atoms["L0"].gain = torch.arange(18) % 2
    scores = importance(model, "ablation", loss=loss)
    assert scores[0][::2].any()


def test_scores_are_what_keep_takes():
    model, loss = adapted()
    scores = importance(model, "gradient", loss=loss)
    atoms = board(model)
    atoms.keep(3, by=scores)
    largest = torch.cat(scores).topk(3).indices.tolist()
    assert sorted(atoms.kept) == sorted(f"L{i // 18}[{i % 18}]" for i in largest)


def test_what_cannot_be_weighed_is_a_sentence():
    model, loss = adapted()
    with pytest.raises(UserError, match="importance by gradient needs a loss: give loss="):
        importance(model, "gradient")
    with pytest.raises(UserError, match="importance is by energy, gradient or ablation, got 'magic'"):
        importance(model, "magic", loss=loss)
