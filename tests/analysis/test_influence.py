"""Influences against plain finite differences in float64, and the pictures of them."""

import numpy as np
import pytest
import torch
from peft import get_peft_model
from PIL import Image
from scipy.stats import spearmanr
from torch.testing import assert_close

from atomtune.analysis.influence import (
    Call,
    additivity_error,
    change,
    difference,
    influence,
    influence_image,
    influence_sizes,
    influences,
    keeping_calls,
    some_of,
)
from atomtune.bases import load_base
from atomtune.errors import UserError
from atomtune.sampling import generate
from atomtune.shipped import ADAPTER
from atomtune.steering import board
from atomtune.storage.folders import load_adapter
from atomtune.tracing import trace
from tests.adapters.tiny import atom_config, inputs, transformer, wake
from tests.tiny_pixart import tiny_pixart

KINDS = [{}, {"mix_first": False}, {"target_modules": ["to_v"]}, {"target_modules": ["attn2"]}, {"activation": "relu"}]


def adapted(**options):
    torch.manual_seed(0)  # then an atom of options 2 fires in the padding of a text alone
    model = wake(get_peft_model(transformer(torch.float64), atom_config(**options)).double())
    given = inputs(torch.float64)
    return board(model), lambda: model(**given, return_dict=False)[0]


@pytest.mark.parametrize("options", KINDS)
def test_all_atoms_of_a_layer_at_once_are_one_atom_at_a_time(options):
    atoms, call = adapted(**options)
    atoms["L0"].gain = torch.linspace(0.5, 1.5, 18)
    step = 1e-6
    for layer in ("L0", "L1"):
        dictionary = atoms[layer].dictionary
        before = dictionary.gain.clone()
        found = influences(atoms, layer, call, chunk=5)
        assert torch.equal(dictionary.gain, before)
        on = call()
        for m in range(18):
            g = float(dictionary.gain[m])
            answers = []
            for gain in (0.0, step, -step):
                dictionary.gain[m] = gain
                answers.append(call().detach())
            dictionary.gain[m] = g
            off, above, below = answers
            if m in (rows := found.rows.tolist()):
                row = rows.index(m)
                assert_close(found.full[row], (on - off).detach(), atol=1e-10, rtol=1e-7)
                assert_close(found.first_order[row], g * (above - below) / (2 * step), atol=1e-7, rtol=1e-4)
                assert_close(found.full[row], influence(atoms, call, f"{layer}[{m}]"), atol=1e-10, rtol=1e-7)
            else:
                assert_close(on, off, atol=1e-12, rtol=0)
        expected = (found.full - found.first_order).flatten(1).norm(dim=1) / found.full.flatten(1).norm(dim=1)
        assert_close(found.nonlinearity, expected.nan_to_num())  # 0 / 0: it fires in the padding of a text alone


def slopes(atoms, call, number: int) -> torch.Tensor:
    """J_m = g ∂f/∂g_m of each atom of a layer, as finite differences [M, ...]."""
    gain, step, found = atoms.dictionaries[number].gain, 1e-5, []
    for m, g in enumerate(gain.tolist()):
        answers = []
        for gain[m] in (g + step, g - step):
            answers.append(call().detach())
        gain[m] = g
        found.append(g * (answers[0] - answers[1]) / (2 * step))
    return torch.stack(found)


@pytest.mark.parametrize("options", KINDS)
def test_sizes_of_all_atoms_at_once_are_projections_of_their_slopes(options):
    """√(mean (vᵀJ_m)²) / ‖f‖ with the same signs v; with many of them ‖J_m‖ / ‖f‖."""
    atoms, call = adapted(**options)
    atoms["L0"].gain = torch.linspace(0.5, 1.5, 18)
    before = [dictionary.gain.clone() for dictionary in atoms.dictionaries]
    few, many = influence_sizes(atoms, [call], draws=5, seed=3), influence_sizes(atoms, [call, call], draws=200)
    assert all(torch.equal(dictionary.gain, gains) for dictionary, gains in zip(atoms.dictionaries, before))
    output, generator = call().detach(), torch.Generator().manual_seed(3)
    signs = torch.stack([torch.randint(0, 2, output.shape, generator=generator) * 2.0 - 1 for _ in range(5)])
    assert set(signs.unique().tolist()) == {-1, 1} and abs(float(signs.mean())) < 0.1
    for number in range(2):
        found = slopes(atoms, call, number)
        projected = torch.einsum("v...,m...->vm", signs.double(), found).square().mean(0).sqrt()
        # Differences over 2e-5 are good to some 1e-10 of the output, and shares of small slopes to 1e-5.
        assert_close(few[number].double(), projected / output.norm(), atol=1e-8, rtol=1e-5)
        # The standard error of 400 draws is √(2 / 400) / 2 = 3.5 %.
        assert_close(many[number].double(), found.flatten(1).norm(dim=1) / output.norm(), atol=1e-8, rtol=0.15)


def test_on_moji_the_sizes_rank_atoms_as_leaving_them_out_does():
    """And what they add to their layers does not."""
    pipe = load_base("moji")
    load_adapter(pipe, ADAPTER)
    calls: list = []
    with keeping_calls(pipe, calls), trace(pipe) as seen:
        generate(pipe, "a sks teapot on a red background", steps=5)
    few = some_of(calls)
    sizes, energies = torch.cat(influence_sizes(pipe, few)), torch.cat([layer.mean_energy for layer in seen.layers])
    addresses = [atom.address for layer in seen.layers for atom in layer]
    acting = energies.nonzero().flatten()
    some = acting[torch.randperm(len(acting), generator=torch.Generator().manual_seed(0))[:40]].tolist()
    truth = []
    for place in some:
        changes = [influence(pipe, again, addresses[place]).norm() for again in few]
        truth.append(float(torch.stack(changes).norm()))
    by_size, by_energy = (float(np.asarray(spearmanr(scores[some], truth))[0]) for scores in (sizes, energies))
    assert by_size > 0.95 and by_energy < 0.6


def test_runs_of_a_drawing_are_repeated_to_the_bit():
    pipe = tiny_pixart()
    wake(get_peft_model(pipe.transformer, atom_config()))
    calls, answers = [], []
    hook = pipe.transformer.register_forward_hook(lambda _module, _args, answer: answers.append(answer[0]))
    with keeping_calls(pipe, calls):
        generate(pipe, "a cat", steps=4)
    hook.remove()
    assert len(calls) == len(answers) == 4
    with torch.no_grad():  # of the answers what the sampler uses: no learned variance
        assert all(torch.equal(again(), answer[:, :4]) for again, answer in zip(calls, answers))
    assert some_of(calls) == calls[1:] and some_of(calls[:2], 1) == calls[1:2] and some_of(calls[:1]) == calls[:1]
    pipe.transformer(**inputs(), return_dict=False)
    assert len(calls) == 4


def test_both_runs_of_a_step_are_taken_where_guidance_runs_twice():
    model = transformer()
    apart = [Call(model, (), {}, time) for time in (900.0, 900.0, 700.0, 700.0, 500.0, 500.0, 300.0, 300.0)]
    assert some_of(apart) == apart[2:] and some_of(apart, 1) == apart[4:6]


def test_sizes_are_the_same_in_inference_mode():
    pipe = tiny_pixart()
    wake(get_peft_model(pipe.transformer, atom_config()))
    found = []
    for mode in (torch.inference_mode(False), torch.inference_mode()):
        calls: list[Call] = []
        with mode:
            with keeping_calls(pipe, calls):
                generate(pipe, "a cat", steps=4)
            found.append(torch.cat(influence_sizes(pipe, calls)))
    assert torch.equal(*found) and bool((found[0] > 0).any())


def test_nothing_to_measure_is_a_sentence():
    atoms, call = adapted()
    with pytest.raises(UserError, match="nothing was run"):
        influence_sizes(atoms, [])
    atoms.dictionaries[0].decoder.weight.data.fill_(1e300)
    with pytest.raises(UserError, match="not finite"):
        influence_sizes(atoms, [call])


def test_some_atoms_of_a_layer_are_measured_as_among_all():
    atoms, call = adapted()
    all, some = influences(atoms, "L0", call), influences(atoms, "L0[3:9]", call)
    among = (all.rows >= 3) & (all.rows < 9)
    assert torch.equal(some.rows, all.rows[among]) and len(some.rows) > 0
    assert_close(some.full, all.full[among])


def test_a_schedule_keeps_its_strength_through_torch_func():
    atoms, call = adapted()
    atoms.schedule = {0: 0.5}
    found = influences(atoms, "L0", call)
    atoms.schedule = {}
    atoms["L0"].gain = atoms["L1"].gain = 0.5
    assert_close(found.full, influences(atoms, "L0", call).full)


def test_what_reaches_the_output_without_a_layer_above_is_linear_and_adds_up():
    """The atoms of a linear layer at the very end: no nonlinearity, no error of addition."""
    atoms, call = adapted(target_modules=["proj_out"])
    found = influences(atoms, "L0", call)
    assert found.nonlinearity.max() < 1e-9
    assert additivity_error(found.full, influence(atoms, call, "L0")) < 1e-9


def test_additivity_is_the_sum_of_single_influences_against_all_at_once():
    atoms, call = adapted()
    found = influences(atoms, "L0", call)
    with torch.no_grad():
        on = call()
        with atoms.muted("L0"):
            whole = on - call()
    assert_close(influence(atoms, call, "L0"), whole)
    expected = (sum(found.full) - whole).norm() / whole.norm()
    assert additivity_error(found.full, whole) == pytest.approx(float(expected))
    assert expected > 1e-4  # attention and norms above it are not linear


def test_a_layer_that_is_silent_has_no_influences():
    atoms, call = adapted()
    atoms["L1"].gain = 0.0
    found = influences(atoms, "L1", call)
    assert len(found.rows) == len(found.full) == len(found.nonlinearity) == 0


def test_red_is_lighter_and_blue_is_darker():
    off = np.full((4, 4, 3), 100, np.uint8)
    on = off.copy()
    on[0], on[1] = 200, 0
    picture = np.asarray(difference(Image.fromarray(on), Image.fromarray(off))).astype(int)
    red, blue, same = picture[0, 0], picture[1, 0], picture[3, 0]
    assert red[0] > red[2] + 100 and blue[2] > blue[0] + 100
    assert same[0] == same[1] == same[2]
    assert change(Image.fromarray(on), Image.fromarray(off)) == pytest.approx((100 + 100) / 4 / 255)


def test_the_picture_with_an_atom_on_and_off_from_the_same_noise():
    pipe = tiny_pixart()
    pipe.set_progress_bar_config(disable=True)
    pipe.transformer = wake(get_peft_model(pipe.transformer, atom_config(num_atoms=4, density=1.0)))
    options = {"steps": 2, "guidance_scale": 1.0}
    on, off, shown = influence_image(pipe, "L0[1]", "a sks dog", **options)
    again, _, _ = influence_image(pipe, "L1[1]", "a sks dog", **options)
    assert on.tobytes() == again.tobytes() != off.tobytes()
    assert shown.size == on.size
    assert all(atom.gain == 1 for atom in board(pipe))
