"""From a trace to maps and numbers by address, against the codes; also when the adapter has changed since."""

from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from atomtune.analysis.importance import importance
from atomtune.errors import UserError
from atomtune.kept import KeptCodes, ModelRun
from atomtune.recording import LayerTrace
from atomtune.steering import board
from atomtune.tracing import trace
from tests.adapters.tiny import atom_config, run, transformer, wake
from tests.test_tracing import codes_of_calls, sampling

HALF: Any = {"atol": 2e-3, "rtol": 1e-3}  # codes are kept in half precision


def adapted(**options):
    return wake(get_peft_model(transformer(), atom_config(**options)))


def test_maps_are_the_mean_of_the_codes_over_the_chosen_timesteps():
    model = adapted()
    seen = codes_of_calls(model, 1)
    with trace(model, codes=True) as t:
        sampling(model, batches=2)
    S = torch.stack(seen).unflatten(0, (2, 3))[:, :, -2:]  # [batch, timestep, samples, tokens, atoms] with the prompt
    S = S.transpose(1, 2).flatten(0, 1)  # [samples, timesteps, tokens, atoms]
    layer = t["L1"]
    for timestep, chosen in ((None, S), (500.0, S[:, 1:2]), ([900, 100], S[:, ::2])):
        signed, magnitude = layer.maps(timestep), layer.maps(timestep, magnitude=True)
        assert_close(signed, chosen.mean(1), **HALF)
        assert_close(magnitude, chosen.abs().mean(1), **HALF)
        for atom in layer:
            assert torch.equal(t[atom.address].maps(timestep), signed[..., atom.index])
            assert torch.equal(atom.maps(timestep, magnitude=True), magnitude[..., atom.index])
    assert_close(layer.every_token(), torch.stack(seen)[:, -2:].flatten(0, 2), **HALF)


def test_numbers_of_an_atom_are_its_layers():
    model = adapted()
    with trace(model) as t:
        sampling(model)
    layer = t["L1"]
    for atom in layer:
        assert t[atom.address].index == atom.index
        for name in ("mean_energy", "firing_rate", "usage", "peak"):
            assert getattr(atom, name) == float(getattr(layer, name)[atom.index])
        assert torch.equal(atom.mean_energy_by_sample, layer.mean_energy_by_sample[:, atom.index])
        by_timestep = {t: float(energy[atom.index]) for t, energy in layer.mean_energy_by_timestep.items()}
        assert atom.mean_energy_by_timestep == by_timestep


def test_samples_of_different_timesteps_in_one_batch_are_kept_apart():
    model = adapted()
    seen = codes_of_calls(model, 0)
    with trace(model, codes=True) as t:
        run(model)  # timesteps 30 and 700
    early, late = t["L0"].maps(700), t["L0"].maps(30)
    assert_close(late[0], seen[0][0].detach(), **HALF)
    assert_close(early[1], seen[0][1].detach(), **HALF)
    assert early[0].isnan().all() and late[1].isnan().all()  # it was not run there
    assert_close(t["L0"].maps(), seen[0].detach(), **HALF)


def test_a_timestep_that_was_not_run_is_a_sentence_not_a_map_of_zeros():
    model = adapted()
    with trace(model, codes=True) as t:
        sampling(model)
    with pytest.raises(UserError, match="kept no codes at timestep 40: it has those at 900, 500, 100"):
        t["L0[3]"].maps(40)


def test_codes_that_were_not_kept_or_not_seen_are_a_sentence():
    model = adapted()
    with trace(model) as t:
        run(model)
    for read in (t["L0"].maps, t["L0[3]"].maps, t["L0"].every_token, t["L0[3]"].top_tokens):
        with pytest.raises(UserError, match=r"this trace kept no codes: use trace\(model, codes=True\)"):
            read()
    with trace(model, codes=True) as t:
        pass
    with pytest.raises(UserError, match="no codes of L0: run the model inside the block"):
        t["L0"].maps()


def test_texts_of_different_lengths_have_top_tokens_but_no_common_map():
    layer = LayerTrace(board(adapted())["L0"].dictionary, keep_codes=True)
    for first, length in ((0, 3), (1, 5)):
        layer.record(torch.arange(length * 18.0).reshape(1, length, 18), ModelRun(first_sample=first, samples=1))
    atom = list(layer)[2]
    assert atom.top_tokens(3) == [(1, 4, 74.0), (1, 3, 56.0), (0, 2, 38.0)]
    with pytest.raises(UserError, match="samples of 3 and of 5 tokens have no common map"):
        atom.maps()


def test_a_wrong_address_is_a_sentence():
    with trace(adapted()) as t:
        pass
    with pytest.raises(UserError, match=r"there is no 'L7\[1\]' in this trace: expected a layer from L0 to L1"):
        t["L7[1]"]


def all_numbers(found) -> list:
    return [found.mean_energy, found.firing_rate, found.usage, found.peak, found.mean_energy_by_sample, found.maps()]


def test_a_trace_from_before_pruning_is_read_after_it_as_it_was_recorded():
    model = adapted()
    with trace(model, codes=True) as t:
        sampling(model)
    addresses = [atom.address for layer in t.layers for atom in layer]
    before = [all_numbers(t[address]) for address in (*addresses, "L0", "L1")]
    totals = (t.alive, t.density, t.active_per_token)
    board(model).only(["L1[4]", "L1[17]", "L1[9]"])
    model.prune()
    assert [atom.address for layer in t.layers for atom in layer] == addresses
    after = [all_numbers(t[address]) for address in (*addresses, "L0", "L1")]
    assert_close(after, before, rtol=0, atol=0)
    assert (t.alive, t.density, t.active_per_token) == totals


def test_energies_of_a_trace_from_before_pruning_are_given_to_the_same_atoms():
    model = adapted()
    with trace(model) as t:
        sampling(model)
    board(model).only(["L1[4]", "L1[17]", "L1[9]"])
    model.prune()  # L0 is gone
    atoms = board(model)
    (scores,) = importance(atoms, traced=t)
    assert {atom.address: float(scores[atom.index]) for atom in atoms} == {
        address: t[address].mean_energy for address in ("L1[4]", "L1[9]", "L1[17]")
    }
    atoms.keep(1, by=[scores])
    with trace(model) as t:  # only what is left
        sampling(model)
    board(other := adapted()).only(["L1[3]", "L1[4]"])
    other.prune()
    with pytest.raises(UserError, match=r"there is no 'L1\[3\]' in this trace: give a trace of the adapter"):
        importance(other, traced=t)


def test_a_trace_right_after_pruning_has_the_same_maps_by_address():
    model = adapted(density=1.0)
    with trace(model, codes=True) as t:
        sampling(model)
    before = {address: t[address].maps() for address in ("L1[4]", "L1[9]", "L1[17]")}
    board(model).drop(["L1[0]", "L1[8]"])
    with trace(model, codes=True) as t:
        sampling(model)
        outside = t
    model.prune()
    with outside:  # entering again looks for the layers anew
        sampling(model)
    assert len(outside["L1"]) == 16
    assert_close({address: outside[address].maps() for address in before}, before, **HALF)


def test_pruning_inside_the_block_is_a_sentence():
    model = adapted()
    with trace(model):
        board(model).drop(["L0[3]"])
        model.prune()
        with pytest.raises(UserError, match="the atoms of L0 were pruned while they were traced"):
            run(model)


def test_energies_are_of_the_directions_at_the_end_of_the_block():
    model = adapted()
    with trace(model) as t:
        run(model)
    before = t["L0"].mean_energy
    with torch.no_grad():
        board(model)["L0"].dictionary.decoder.weight.mul_(2)
    assert torch.equal(t["L0"].mean_energy, before)


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that was made."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self.elements = max(self.elements, out.numel())
        return out


def test_a_map_of_one_atom_does_not_lay_out_the_others():
    layer = LayerTrace(board(adapted())["L0"].dictionary, keep_codes=True)
    codes = torch.zeros(2, 400, 18)
    codes[:, ::50] = 1
    layer.kept_codes.append(KeptCodes.of(codes, None, 0))
    with Largest() as largest:
        next(iter(layer)).maps()
    assert largest.elements <= 2 * 400


def test_energies_of_atoms_that_were_pruned_inside_the_block_are_refused():
    """One atom is left: its norm must not become that of all."""
    model = adapted()
    with trace(model) as t:
        run(model)
        board(model).only(["L0[3]", "L1"])
        model.prune()
    assert t["L0"].usage.any() and t["L1"].mean_energy.any()
    with pytest.raises(UserError, match="prune outside the block"):
        _ = t["L0"].mean_energy
