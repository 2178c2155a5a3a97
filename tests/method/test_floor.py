"""The floor under the codes, against quantiles written out in float64."""

import copy
from itertools import pairwise

import pytest
import torch
from torch.testing import assert_close

from atomtune.errors import UserError
from atomtune.method import floor as module
from atomtune.method.dictionary import SparseDictionary, measuring_floors
from atomtune.method.floor import LEVELS, ROUNDING, UNMEASURED, Floor, Sample, set_share
from atomtune.method.sigma import SIGMAS, SigmaConfig

M, N = 6, 1000


def codes(seed: int = 0, tokens: int = N) -> torch.Tensor:
    """Sparse codes: of each atom, a tenth of the tokens."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(tokens, M, generator=generator, dtype=torch.float64)
    return values * (torch.rand(tokens, M, generator=generator) < 0.1)


def measured(seen: torch.Tensor, share: float = 0.0) -> Floor:
    floor = Floor(M).double()
    with floor.measuring():
        floor(seen)
    floor.set(share)
    return floor


def threshold(floor: Floor) -> torch.Tensor:
    assert floor.threshold is not None
    return floor.threshold.double()


def test_without_a_floor_codes_are_returned_as_they_are():
    s, floor = codes(), Floor(M)
    assert floor(s) is s
    with floor.measuring():
        assert not floor(s).any()
    assert floor(s) is s


@pytest.mark.parametrize("share", LEVELS)
def test_a_code_is_kept_where_it_exceeds_the_quantile_on_other_inputs(share):
    """s_m · [|s_m| > λ_m], λ_m the smallest value that a share q of |s_m| on other inputs does not exceed, and 1 % for
    rounding."""
    others, s = codes(), 1.5 * codes(1)
    wanted = torch.zeros_like(s)
    for m in range(M):
        ordered = sorted(abs(float(value)) for value in others[:, m])
        λ = ordered[round(share * N) - 1]
        for n in range(N):
            wanted[n, m] = s[n, m] if abs(float(s[n, m])) > 1.01 * λ else 0
    found = measured(others, share)(s)
    assert torch.equal(found, wanted)
    assert (found != 0).any()


def test_at_one_what_was_seen_is_silent_to_the_bit():
    others = codes()
    assert not measured(others, 1.0)(others).any()
    assert measured(others, 0.999)(others).any()


def test_between_the_levels_it_is_linear_in_nines():
    floor = measured(codes(), 0.95)
    place = -torch.log10(torch.tensor(0.05, dtype=torch.float64)) - 1
    low, high = floor.levels[:, 0].double(), floor.levels[:, 1].double()
    torch.testing.assert_close(threshold(floor), (1 + ROUNDING) * (low + place * (high - low)), rtol=1e-6, atol=0)
    at = [threshold(measured(codes(), share)) for share in (0.5, 0.9, 0.97, 0.99, 0.9995, 1.0)]
    assert all((one <= other).all() for one, other in pairwise(at))


def test_several_forward_passes_are_one_measurement():
    together, parts = Floor(M), Floor(M)
    with together.measuring():
        together(codes())
    with parts.measuring():
        for part in codes().split(130):
            parts(part[None])
    torch.testing.assert_close(parts.levels, together.levels, rtol=0, atol=0)


def test_many_tokens_are_sampled_and_the_largest_is_exact(monkeypatch):
    monkeypatch.setattr(module, "SAMPLE", 2000)
    others, floor = codes(tokens=20_000), Floor(M)
    others[17, 3] = 100.0
    with floor.measuring():
        for part in others.split(700):
            floor(part)
    assert floor.levels[3, -1] == 100
    assert torch.equal(floor.levels[:, -1], others.abs().amax(0).float())
    exact = others.abs().quantile(LEVELS[1], dim=0)
    torch.testing.assert_close(floor.levels[:, 1].double(), exact, rtol=0.25, atol=0)  # 20 of the sample are above it


@pytest.mark.parametrize("part", [1, 7, 30, 200])
def test_a_sample_is_the_rows_with_the_largest_keys_in_whatever_parts_they_come(part):
    rows, sample = codes(), Sample(100)
    for some in rows.split(part):
        sample.add(some)
    keys = torch.rand(N, generator=torch.Generator().manual_seed(0))
    assert sample.rows is not None
    assert torch.equal(sample.rows, rows[keys.argsort(descending=True)[:100]])


def test_a_sample_with_room_for_all_rows_has_them_as_they_came():
    rows, sample = codes(tokens=90), Sample(100)
    assert sample.rows is None
    for some in rows.split(40):
        sample.add(some)
    assert_close(sample.rows, rows, rtol=0, atol=0)


def test_it_is_measured_without_the_floor_that_is_there():
    floor = measured(codes(), 0.99)
    before = floor.levels.clone()
    with floor.measuring():
        floor(codes())
    assert torch.equal(floor.levels, before)


def test_a_block_that_fails_or_runs_nothing_changes_nothing():
    floor = measured(codes(), 0.99)
    before = floor.levels.clone()
    with floor.measuring():
        pass
    assert torch.equal(floor.levels, before)
    with pytest.raises(IndexError), floor.measuring():
        floor(10 * codes())[N]
    assert torch.equal(floor.levels, before)


def test_at_one_what_was_seen_is_silent_with_other_last_bits_too():
    others = codes()
    floor = measured(others, 1.0)
    assert not floor(others * (1 + 1e-6)).any()
    assert floor(others * 1.02).any()


def test_what_is_not_a_number_is_not_hidden():
    floor, s = measured(codes(), 1.0), codes()
    s[5, 2] = torch.nan
    assert floor(s)[5, 2].isnan()


def test_codes_that_are_not_finite_are_no_measurement():
    floor, s = measured(codes(), 0.99), codes()
    before, s[5, 2] = floor.levels.clone(), torch.nan
    with pytest.raises(UserError, match="not finite"), floor.measuring():
        floor(s)
    assert torch.equal(floor.levels, before) and floor(codes()).any()


def test_a_block_in_a_block_is_refused_and_the_outer_one_measures_on():
    floor, whole = Floor(M), Floor(M)
    with floor.measuring():
        floor(codes())
        with pytest.raises(UserError, match="already"), floor.measuring():
            pass
        assert not floor(2 * codes(1)).any()
    with whole.measuring():
        whole(torch.cat([codes(), 2 * codes(1)]))
    assert torch.equal(floor.levels, whole.levels)


def test_single_tokens_and_none_are_measured():
    floor, together, s = Floor(M), Floor(M), codes(tokens=50)
    with floor.measuring():
        assert floor(s[:0]).shape == (0, M)
        for token in s:
            floor(token)
    with together.measuring():
        together(s)
    assert torch.equal(floor.levels, together.levels)


def test_dropped_atoms_are_not_measured():
    """They cannot fire, which says nothing about what they do once they are back."""
    atoms, x = dictionary(), torch.randn(200, 8, dtype=torch.float64)
    dropped = torch.arange(M) >= 4
    atoms.keep_only(~dropped)
    with measuring_floors([atoms]):
        atoms(x)
    assert (atoms.floor.levels[4:] == UNMEASURED).all() and (atoms.floor.levels[:4] >= 0).all()
    atoms.keep_only(None)
    with measuring_floors([atoms]):
        atoms(x)
    before = atoms.floor.levels.clone()
    atoms.keep_only(~dropped)
    with measuring_floors([atoms]):
        atoms(x)
    assert torch.equal(atoms.floor.levels[4:], before[4:]) and (before > 0).any()


def test_atoms_are_not_pruned_while_they_are_measured():
    atoms, x = dictionary(), torch.randn(40, 8, dtype=torch.float64)
    atoms.keep_only(torch.arange(M) < 4)
    with measuring_floors([atoms]):
        atoms(x)
        with pytest.raises(UserError, match="prune after the block"):
            atoms.prune()
    atoms.prune()
    assert len(atoms.floor.levels) == 4


def test_a_floor_of_a_model_in_training_fits_what_is_drawn():
    """With batch_topk, σ chooses otherwise in training than in drawing."""
    atoms, x = dictionary(activation="batch_topk").train(), torch.randn(40, 8, dtype=torch.float64)
    atoms(x)
    atoms.sigma.update_estimates()
    with measuring_floors([atoms]):
        atoms(x)
    assert atoms.sigma.training
    atoms.floor.set(1.0)
    assert not atoms.eval()(x).any()


def test_of_several_layers_those_that_were_measured_are_set():
    floors = [measured(codes()), Floor(M)]
    set_share(floors, 0.99)
    assert (floors[0].share == 0.99).all() and not floors[1].share.any()
    with pytest.raises(UserError, match="measure_floor"):
        set_share(floors[1:], 0.99)
    set_share(floors, 0)
    assert not floors[0].share.any()


def test_of_the_atoms_of_a_layer_those_that_were_measured_are_set():
    """Of an adapter that was merged from one with and one without a measurement."""
    floor = measured(codes())
    floor.levels[4:] = UNMEASURED
    floor.set(1.0)
    assert floor.share.tolist() == [1, 1, 1, 1, 0, 0] and floor.chosen == 1
    found = floor(codes())
    assert not found[:, :4].any() and torch.equal(found[:, 4:], codes()[:, 4:])
    floor.set(0)
    assert not floor.share.any() and floor.chosen == 0


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_out_of_range_is_refused(share):
    with pytest.raises(UserError, match="from 0"):
        measured(codes()).set(share)
    with pytest.raises(UserError, match="from 0"):
        Floor(M, share)


def test_a_floor_that_was_not_measured_is_refused():
    floor = Floor(M)
    with pytest.raises(UserError, match="measure_floor"):
        floor.set(0.99)
    floor.set(0)


def test_a_floor_given_at_the_start_acts_once_it_is_measured():
    floor, others = Floor(M, 1.0).double(), codes()
    assert floor(others) is others
    with floor.measuring():
        floor(others)
    assert not floor(others).any()


def dictionary(share: float = 0.0, activation: str = "topk", **options) -> SparseDictionary:
    torch.manual_seed(0)
    made = SparseDictionary(8, M, 5, SigmaConfig(activation, density=0.5), floor=share, **options).double().eval()
    torch.nn.init.normal_(made.decoder.weight)
    return made


@pytest.mark.parametrize("activation", SIGMAS)
def test_a_dictionary_is_silent_where_no_atom_exceeds_its_floor(activation):
    """S = φ(σ(x W_s)), for every σ."""
    atoms, x = dictionary(activation=activation), torch.randn(40, 8, dtype=torch.float64)
    plain = atoms.codes(x)
    with atoms.floor.measuring():
        atoms(x)
    atoms.floor.set(1.0)
    assert not atoms(x).any()
    larger = atoms.codes(3 * x)
    assert larger.any()
    atoms.floor.set(0)
    assert torch.equal(atoms.codes(x), plain)


def test_gradients_reach_the_codes_that_are_kept_and_no_others():
    floor, s = measured(codes(), 0.999), (1.5 * codes(1)).requires_grad_()
    floor(s).sum().backward()
    assert s.grad is not None and torch.equal(s.grad, (floor(s) != 0).double())


def test_it_is_saved_pruned_and_copied_with_its_atoms():
    atoms, x = dictionary(), torch.randn(200, 8, dtype=torch.float64)
    with atoms.floor.measuring():
        atoms(x)
    atoms.floor.set(0.99)
    loaded = dictionary()
    loaded.load_state_dict(atoms.state_dict())
    assert torch.equal(loaded.codes(2 * x), atoms.codes(2 * x))
    assert not loaded.floor.changed
    loaded.floor.set(0.9)
    assert loaded.floor.changed
    loaded.floor.reset()
    assert torch.equal(threshold(loaded.floor), threshold(atoms.floor))
    assert torch.equal(copy.deepcopy(atoms).codes(2 * x), atoms.codes(2 * x))

    atoms.keep_only(torch.arange(M) % 2 == 0)
    before = atoms(2 * x)
    atoms.prune()
    assert atoms.floor.levels.shape == (M // 2, len(LEVELS))
    torch.testing.assert_close(atoms(2 * x), before, rtol=1e-12, atol=1e-12)  # sums of fewer numbers


def test_half_precision_keeps_codes_in_half_and_levels_in_float32():
    floor = measured(codes(), 0.99).to(torch.bfloat16)
    assert floor(codes().bfloat16()).dtype == torch.bfloat16
    assert floor.levels.dtype.itemsize >= 4


def test_unmeasured_levels_let_every_code_pass():
    floor = Floor(M, 0.99)
    assert (floor.levels == UNMEASURED).all()
    assert floor.threshold is None


def test_padding_of_texts_does_not_count():
    """What attention never reads need not be below the floor."""
    s, words = codes().reshape(-1, 10, M), torch.arange(10) < 7
    floor, loud = Floor(M, 1.0).double(), s.clone()
    loud[:, ~words] *= 100
    with floor.measuring(words=[words.expand(s.shape[:2])]) as seen:
        floor(loud)
    assert seen.tokens == s[:, words].numel() // M
    assert_close(floor.levels[:, -1], s[:, words].abs().amax((0, 1)).to(floor.levels))
