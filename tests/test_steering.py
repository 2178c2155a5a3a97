"""AtomBoard: what it counts, and its dials."""

import copy
import json
import pickle
import textwrap
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import get_peft_model
from torch.testing import assert_close
from transformers import LlamaConfig, LlamaForCausalLM

import atomtune
from atomtune.errors import UserError
from atomtune.steering import board
from atomtune.tracing import trace
from tests.adapters.tiny import atom_config, inputs, run, transformer, wake
from tests.tiny_pixart import tiny_pixart


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
    assert atoms.density == 4 / 18  # k = round(0.2 · 18)
    before = run(model)
    atoms.density = 0.1
    assert atoms.density == 2 / 18
    sparser = wake(get_peft_model(transformer(), atom_config(density=0.1)))
    sparser.load_state_dict(model.state_dict())
    assert torch.equal(run(model), run(sparser))
    atoms.density = 0.2
    assert torch.equal(run(model), before)


def test_where_layers_differ_the_density_is_the_mean_over_atoms():
    atoms = board(get_peft_model(transformer(), atom_config(density=0.2)))
    atoms.layers[0].set_density("default", 0.4)
    assert atoms.density == pytest.approx((4 + 7) / (18 + 18))


def test_bad_densities_and_missing_adapters_are_sentences():
    model = get_peft_model(transformer(), atom_config())
    with pytest.raises(UserError, match=r"density must be in \(0, 1\], got 4. Did you mean 0.04 \(4 %\)\?"):
        board(model).density = 4.0
    with pytest.raises(UserError, match="carries no atoms under the name 'style': attach or load an adapter"):
        board(model, "style")


def test_an_address_finds_a_layer_or_an_atom():
    atoms = board(wake(get_peft_model(transformer(), atom_config())))
    assert len(atoms["L1"]) == 18
    atom = atoms["L1[5]"]
    assert (atom.address, atom.head, atom.gain, atom.kept) == ("L1[5]", 1, 1.0, True)
    assert torch.equal(atom.direction, atoms.dictionaries[1].decoder.weight[5])
    assert [a.address for a in atoms][16:20] == ["L0[16]", "L0[17]", "L1[0]", "L1[1]"]


@pytest.mark.parametrize("address", ["L2", "L0[18]", "L0[x]", "0[1]", ""])
def test_an_address_that_is_not_there_is_a_sentence(address):
    atoms = board(get_peft_model(transformer(), atom_config()))
    with pytest.raises(UserError, match="expected a layer from L0 to L1, or atoms of one, such as L0"):
        atoms[address]


def deltas(model, changed):
    """ΔO of the first layer, and the formula for it after `changed`."""
    atoms = board(model)
    x = torch.randn(1, 40, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    own = atoms.dictionaries[0].double()
    changed(atoms)
    return own(x)[0], x[0] @ own.encoder.weight.T, own.decoder.weight


def linear(**options):
    return wake(get_peft_model(transformer(), atom_config(target_modules=["attn2.to_q"], **options)))


def test_gain_zero_silences_an_atom_and_nobody_takes_its_place():
    model, k = linear(density=0.2), 4
    delta, C, D = deltas(model, lambda atoms: setattr(atoms["L0[7]"], "gain", 0.0))
    S = torch.where(C.abs() >= C.abs().sort(descending=True).values[:, k - 1 : k], C, 0.0)
    assert S[:, 7].any()
    g = torch.ones(18, dtype=torch.float64).index_fill(0, torch.tensor(7), 0)
    assert torch.allclose(delta, (S * g) @ D, atol=1e-12)


def test_the_others_compete_for_the_places_of_a_dropped_atom():
    model, k = linear(density=0.2), 4
    delta, C, D = deltas(model, lambda atoms: atoms.drop(["L0[7]", "L0[2]"]))
    C = C.index_fill(1, torch.tensor([7, 2]), 0)
    S = torch.where(C.abs() >= C.abs().sort(descending=True).values[:, k - 1 : k], C, 0.0)
    assert (S != 0).sum(1).eq(k).all()
    assert torch.allclose(delta, S @ D, atol=1e-12)


@pytest.mark.parametrize("targets", ["attn1", "attn2.to_q"])
def test_keep_takes_the_largest_over_the_model_or_in_each_layer(targets):
    atoms = board(wake(get_peft_model(transformer(), atom_config(target_modules=[targets]))))
    scores = [torch.arange(18.0), torch.arange(18.0) + 9]
    atoms.keep(12, by=scores)  # 26 … 18 of L1, then ties of 17: L0[17] and L1[8], 16: …
    assert len(atoms.kept) == 12
    assert set(atoms.kept) >= {f"L1[{i}]" for i in range(9, 18)} | {"L0[17]", "L1[8]"}
    atoms.reset()
    atoms.keep(2, by=scores, per_layer=True)
    assert atoms.kept == ["L0[16]", "L0[17]", "L1[16]", "L1[17]"]
    atoms.keep(3, by=[-score for score in scores])  # only among those that are left
    assert atoms.kept == ["L0[16]", "L0[17]", "L1[16]"]


def test_without_scores_keep_goes_by_the_energy_of_training():
    model = wake(get_peft_model(transformer(), atom_config()))
    atoms = board(model)
    for dictionary in atoms.dictionaries:
        dictionary.usage.copy_(torch.arange(18.0))
    energies = torch.cat([d.usage * d.decoder.weight.norm(dim=1) for d in atoms.dictionaries])
    atoms.keep(3)
    assert {a.address for a, e in zip(atoms, energies) if e >= energies.sort().values[-3]} == set(atoms.kept)


def lines_that_help(error: Exception) -> str:
    """The code that a sentence shows."""
    return textwrap.dedent(str(error).partition("\n\n")[2])


@pytest.mark.parametrize("ask", ["keep", "importance"])
def test_without_a_record_of_training_the_sentence_shows_the_two_lines_that_measure_it(ask):
    """A pipeline, and an adapter whose training recorded nothing: the lines run as they are printed."""
    pipe = tiny_pixart()
    pipe.transformer = wake(get_peft_model(pipe.transformer, atom_config()))
    atoms = board(pipe)

    def asked():
        return atoms.keep(5) if ask == "keep" else atomtune.importance(pipe, by="energy")

    with pytest.raises(UserError, match="was trained without a record of how much its atoms are used") as error:
        asked()
    saved = {key: value.clone() for key, value in pipe.transformer.state_dict().items()}
    exec(lines_that_help(error.value), {"atomtune": atomtune, "pipe": pipe})
    scores = asked()
    assert len(atoms.kept) == 5 if scores is None else all(score.any() for score in scores)
    now = pipe.transformer.state_dict()
    assert now.keys() == saved.keys() and all(torch.equal(now[key], saved[key]) for key in saved)  # nothing is saved


def test_a_text_model_is_shown_its_own_two_lines():
    config = LlamaConfig(vocab_size=50, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    model = wake(get_peft_model(LlamaForCausalLM(config), atom_config(target_modules=["v_proj"]), "own"), "own")
    with pytest.raises(UserError, match="was trained without a record") as error:
        board(model, "own").keep(3)
    examples = {"input_ids": torch.arange(12).view(2, 6)}
    exec(lines_that_help(error.value), {"atomtune": atomtune, "model": model, "examples": examples})
    board(model, "own").keep(3)
    assert len(board(model, "own").kept) == 3


def test_a_traced_energy_is_that_of_the_trace_and_gives_way_to_that_of_training():
    model = wake(get_peft_model(transformer(), atom_config()))
    with torch.inference_mode(), trace(model) as t:
        run(model)
    atoms = board(model)
    for energy, layer in zip(atoms.mean_energy(), t.layers):
        assert_close(energy, layer.mean_energy)

    def broken_off():
        with trace(model):
            board(model)["L0"].gain = 3.0
            run(model)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        broken_off()
    with trace(model):
        pass
    assert_close(atoms.mean_energy(), [layer.mean_energy for layer in t.layers])  # neither of these ran to its end
    strongest = atoms.mean_energy()[0].topk(4).indices.sort().values
    atoms.keep(4, per_layer=True)
    model.prune()
    assert_close(atoms.mean_energy()[0], t.layers[0].mean_energy[strongest])
    assert copy.deepcopy(model) is not model
    for dictionary in atoms.dictionaries:
        dictionary.usage.fill_(2.0)
        assert_close(atoms.mean_energy()[int(dictionary.layer)], 2 * dictionary.atoms().norm(dim=1))


def test_only_and_reset_and_a_whole_layer():
    model = wake(get_peft_model(transformer(), atom_config()))
    before, atoms = run(model), board(model)
    atoms.only(["L0[3]", "L1"])
    assert len(atoms.kept) == 19
    atoms["L1"].gain = 0.5
    atoms["L0"].density = 0.06
    atoms.schedule = {1000.0: 0.0, 0.0: 1.0}
    assert not torch.equal(run(model), before)
    atoms.reset()
    assert torch.equal(run(model), before)
    assert atoms.preset() == {}


def test_muted_is_gain_zero_inside_the_block_only():
    model = wake(get_peft_model(transformer(), atom_config()))
    before, atoms = run(model), board(model)
    atoms["L0"].gain = 0.3
    turned = run(model)
    with model.disable_adapter():
        base = run(model)
    with atoms.muted("L0", "L1"):
        assert_close(run(model), base)
    with pytest.raises(ZeroDivisionError), atoms.muted("L0"):
        raise ZeroDivisionError
    assert torch.equal(run(model), turned)
    assert not torch.equal(turned, before)


def test_a_schedule_is_the_strength_at_each_timestep():
    model = wake(get_peft_model(transformer(), atom_config()))
    atoms = board(model)
    given = inputs()

    def at(t: int) -> torch.Tensor:
        return model(**given | {"timestep": torch.tensor([t, t])}, return_dict=False)[0]

    full = at(700)
    atoms.schedule = {1000.0: 0.0, 400.0: 1.0}
    assert board(model).schedule == {400.0: 1.0, 1000.0: 0.0}
    for layer in atoms.layers:
        layer.set_scale("default", 0.5)
    at_700 = at(700)
    copied = copy.deepcopy(model)
    assert torch.equal(pickle.loads(pickle.dumps(copied))(**given, return_dict=False)[0], copied(**given)[0])
    atoms.schedule = {}
    assert torch.equal(at(700), at_700) is False
    for layer in atoms.layers:
        layer.set_scale("default", 0.25)  # 0.5 of the scale times 0.5 of the schedule
    assert torch.equal(at(700), at_700)
    for layer in atoms.layers:
        layer.set_scale("default", 1.0)
    assert torch.equal(at(700), full)


def test_a_preset_is_every_dial_and_comes_back_from_its_file(tmp_path):
    model = wake(get_peft_model(transformer(), atom_config()))
    atoms = board(model)
    atoms["L0[3]"].gain = -0.5
    atoms.drop(["L1[4]"])
    atoms["L1"].density = 0.4
    atoms.schedule = {900.0: 1.0, 100.0: 0.0}
    turned = run(model)
    assert atoms.preset() == {
        "density": {"L1": 0.388889},
        "gain": {"L0[3]": -0.5},
        "dropped": ["L1[4]"],
        "schedule": {"100": 0.0, "900": 1.0},
    }
    atoms.save_preset(tmp_path / "preset.json")
    atoms.reset()
    assert not torch.equal(run(model), turned)
    atoms.apply(tmp_path / "preset.json")
    assert torch.equal(run(model), turned)


def test_a_preset_for_another_adapter_changes_nothing(tmp_path):
    model = wake(get_peft_model(transformer(), atom_config()))
    atoms = board(model)
    atoms["L0[3]"].gain = 0.5
    with pytest.raises(UserError, match=r"there is no 'L9\[1\]' in this adapter"):
        atoms.apply({"gain": {"L0[1]": 0.0, "L9[1]": 0.0}})
    with pytest.raises(
        UserError, match="the preset has 'gains': expected density, floor, gain, only, dropped and schedule"
    ):
        atoms.apply({"gains": {}})
    for preset in ({"gain": {"L0": "loud"}}, {"gain": ["L0"]}, {"density": {"L0[3]": 0.1}}, {"dropped": [3]},
                   {"schedule": {"late": 1.0}}, {"density": {"L0": 4.0}}, {"floor": {"L0": 0.9}}):  # fmt: skip
        with pytest.raises(UserError):
            atoms.apply({"gain": {"L1": 0.0}} | preset)
        assert atoms.preset() == {"gain": {"L0[3]": 0.5}}
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(UserError, match="could not be read"):
        atoms.apply(tmp_path / "bad.json")
    assert atoms.preset() == {"gain": {"L0[3]": 0.5}}


DIALS = st.fixed_dictionaries(
    {
        "gains": st.lists(st.sampled_from([1.0, 0.0, 0.5, -2.0, 0.1]), min_size=36, max_size=36),
        "kept": st.lists(st.booleans(), min_size=36, max_size=36) | st.just([True] * 36) | st.just([False] * 36),
        "densities": st.lists(st.none() | st.floats(0.01, 1.0), min_size=2, max_size=2),
        "schedule": st.dictionaries(st.floats(0, 1000), st.floats(-2, 2), max_size=3),
    }
)
BOARD = board(get_peft_model(transformer(), atom_config()))


def set_dials(atoms, dials) -> None:
    atoms.reset()
    for number, dictionary in enumerate(atoms.dictionaries):
        rows = slice(18 * number, 18 * number + 18)
        dictionary.gain.copy_(torch.tensor(dials["gains"][rows]))
        dictionary.keep_only(torch.tensor(dials["kept"][rows]))
        if dials["densities"][number] is not None:
            dictionary.sigma.set_density(dials["densities"][number])
    atoms.schedule = dials["schedule"]


def dials_of(atoms):
    return [[d.gain.tolist(), [atom.kept for atom in atoms], d.sigma.k_now, atoms.schedule] for d in atoms.dictionaries]


@given(DIALS)
def test_any_dials_come_back_from_their_preset(dials):
    set_dials(BOARD, dials)
    expected, preset = dials_of(BOARD), json.loads(json.dumps(BOARD.preset()))
    BOARD.reset()
    BOARD.apply(preset)
    assert dials_of(BOARD) == expected
    assert BOARD.preset() == preset


def test_a_preset_of_an_earlier_version_still_applies():
    """It named every atom: 256 lines for a silent layer."""
    atoms = board(get_peft_model(transformer(), atom_config()))
    atoms.apply({"gain": {f"L1[{i}]": 0.0 for i in range(18)}, "dropped": [f"L0[{i}]" for i in range(18) if i != 3]})
    assert not atoms["L1"].gain.any() and atoms["L0"].gain.all()
    assert atoms.kept == ["L0[3]", *(f"L1[{i}]" for i in range(18))]


def test_a_preset_has_the_numbers_that_were_typed():
    atoms = board(get_peft_model(transformer(), atom_config()))
    atoms["L0[1]"].gain = 0.8
    assert json.dumps(atoms.preset()) == '{"gain": {"L0[1]": 0.8}}'


def test_a_preset_is_short(tmp_path):
    """Of 2,048 atoms as on moji: a silent layer, half of one, and the 400 atoms of the largest scores."""
    atoms = board(get_peft_model(transformer(num_layers=8), atom_config(num_atoms=256)))
    sizes = {}

    def saved(name):
        atoms.save_preset(tmp_path / "preset.json")
        sizes[name] = (tmp_path / "preset.json").stat().st_size
        preset = atoms.preset()
        atoms.reset()
        return preset

    atoms["L7"].gain = 0.0
    assert saved("a silent layer") == {"gain": {"L7": 0.0}}
    atoms["L7[0:128]"].gain = 0.0
    atoms["L2[3, 9, 40:60]"].gain = 0.5
    assert saved("parts of layers") == {"gain": {"L2[3,9,40:60]": 0.5, "L7[0:128]": 0.0}}
    atoms.drop(["L1[:40]", "L3"])
    assert saved("dropped") == {"dropped": ["L1[0:40]", "L3"]}
    generator = torch.Generator().manual_seed(0)
    for count in (400, 2048 - 400):
        atoms.keep(count, by=[torch.rand(256, generator=generator) for _ in range(8)])
        kept = atoms.kept
        preset = saved(f"keep({count})")
        assert list(preset) == ["only" if count == 400 else "dropped"]
        atoms.apply(preset)
        assert atoms.kept == kept
        atoms.reset()
    assert sizes["a silent layer"] < 40 and sizes["parts of layers"] < 80 and sizes["dropped"] < 50
    assert sizes["keep(400)"] < 2000 and sizes["keep(1648)"] < 2000


def test_an_address_of_several_atoms_is_taken_wherever_one_is():
    atoms = board(wake(get_peft_model(transformer(), atom_config())))
    with atoms.muted("L0[0:9]"):
        assert atoms["L0"].gain.tolist() == [0.0] * 9 + [1.0] * 9
    atoms.only(["L0[3:5]", "L1[7]"])
    assert atoms.kept == ["L0[3]", "L0[4]", "L1[7]"]
    some = atoms["L0[3:5, 9]"]
    assert repr(some) == "<L0[3:5,9] of transformer_blocks.0.attn1: 3 atoms>"
    assert [atom.address for atom in some] == ["L0[3]", "L0[4]", "L0[9]"]
    some.gain = torch.tensor([0.1, 0.2, 0.3])
    assert_close(some.gain, torch.tensor([0.1, 0.2, 0.3]))
    with trace(atoms.model) as t:
        run(atoms.model)
    assert [atom.address for atom in t["L1[16:]"]] == ["L1[16]", "L1[17]"]


@pytest.mark.parametrize("address", ["L0[3]", "L0[3:5]", "L0"])
def test_a_dial_that_an_atom_or_layer_does_not_have_cannot_be_set(address):
    found = board(get_peft_model(transformer(), atom_config()))[address]
    with pytest.raises(AttributeError):
        found.gian = 0.0
    if address != "L0":
        with pytest.raises(AttributeError):
            found.density = 0.1


def test_what_is_printed_says_where_an_atom_sits():
    atoms = board(get_peft_model(transformer(), atom_config(density=0.2)))
    atoms["L1[4]"].gain = 0.5
    atoms.drop(["L1[4]"])
    assert repr(atoms["L1[4]"]) == "<L1[4] of transformer_blocks.1.attn1: head 0, gain 0.5, dropped>"
    assert repr(atoms).splitlines() == [
        "AtomBoard of 'default': 36 atoms in 2 layers, 35 kept",
        "  <L0 = transformer_blocks.0.attn1: 18 atoms, density 0.222>",
        "  <L1 = transformer_blocks.1.attn1: 18 atoms, density 0.222>",
    ]


def test_a_board_from_before_pruning_stays_usable_when_a_layer_is_gone():
    model = wake(get_peft_model(transformer(), atom_config()))
    atoms = board(model)
    atoms.only(["L1[3]", "L1[7]"])
    model.prune()
    assert atoms.kept == ["L1[3]", "L1[7]"] == board(model).kept
    assert repr(atoms) == repr(board(model))
    atoms.reset()
    with pytest.raises(UserError, match="no 'L0'"):
        atoms["L0"]


def test_scores_of_another_adapter_are_refused():
    atoms = board(get_peft_model(transformer(), atom_config()))
    for scores in ([torch.rand(18)], [torch.rand(18), torch.rand(17)]):
        with pytest.raises(UserError, match=r"a score for each atom: expected \[18, 18\]"):
            atoms.keep(3, by=scores)
    assert len(atoms.kept) == 36


@pytest.mark.parametrize("gain", [None, "loud", [1.0, 2.0], float("nan"), float("inf")])
def test_a_gain_is_a_finite_number_or_one_for_each_atom(gain):
    atoms = board(get_peft_model(transformer(), atom_config()))
    for address in ("L0", "L0[3:6]", "L0[3]"):
        with pytest.raises(UserError, match="a gain is a finite number"):
            atoms[address].gain = gain
        with pytest.raises(UserError, match="a gain is a finite number"):
            atoms.apply({"density": {"L1": 0.5}, "gain": {address: gain}})
        assert atoms.preset() == {}


def test_a_preset_says_what_cannot_be_applied():
    atoms = board(get_peft_model(transformer(), atom_config()))
    for preset, sentence in {
        "density": ({"density": {"L0[3]": 0.1}}, "a density is that of a layer, got 'L0[3]': give 'L0'."),
        "schedule": ({"schedule": {"500": float("nan")}}, "a schedule is made of finite numbers"),
    }.values():
        with pytest.raises(UserError) as error:
            atoms.apply(preset)
        assert sentence in str(error.value) and atoms.preset() == {}


def test_a_floor_is_measured_on_inputs_that_the_adapter_should_leave_alone():
    """Above all that was seen, the base answers to the bit; other inputs still change."""
    model = wake(get_peft_model(transformer(), atom_config()))
    atoms, plain = board(model), run(model)
    with model.disable_adapter():
        base = run(model)
    with pytest.raises(UserError, match=r"board\.measure_floor"):
        atoms.floor = 0.99
    with atoms.measure_floor():
        run(model)
    assert atoms.floor == 0 and torch.equal(run(model), plain)
    atoms.floor = 1.0
    rounding = {"rtol": 0, "atol": 2e-6}  # of the attention call with more channels, which differs by 4e-7
    assert_close(run(model), base, **rounding)
    with trace(model) as seen:
        run(model)
    assert seen.silent == 1 and not torch.allclose(plain, base, **rounding)
    assert atoms["L0"].floor == 1 and atoms.preset() == {"floor": {"L0": 1.0, "L1": 1.0}}
    preset = atoms.preset()
    atoms.reset()
    assert torch.equal(run(model), plain)
    atoms.apply(preset)
    assert_close(run(model), base, **rounding)
    atoms["L0"].floor = 0
    assert atoms.floor == 0.5 and atoms.preset() == {"floor": {"L1": 1.0}}
    with pytest.raises(UserError, match="from 0"):
        atoms.floor = 2


@pytest.mark.parametrize("mix_first", [True, False])
def test_above_all_that_was_seen_the_base_answers_in_a_batch_of_another_size_too(mix_first):
    model = wake(get_peft_model(transformer(), atom_config(mix_first=mix_first)))
    with board(model).measure_floor():
        run(model)
    board(model).floor = 1.0
    for row in range(2):
        one = {name: value[row : row + 1] if torch.is_tensor(value) else value for name, value in inputs().items()}
        with model.disable_adapter():
            base = model(**one, return_dict=False)[0]
        # The attention call with more channels rounds otherwise, by 4e-7; an atom that fires changes it by .7.
        assert_close(model(**one, return_dict=False)[0], base, rtol=0, atol=2e-6)


def test_a_floor_of_an_adapter_that_does_not_run_is_not_measured():
    model = wake(get_peft_model(transformer(), atom_config()))
    model.add_adapter("other", atom_config())
    with pytest.raises(UserError, match="none of these atoms ran"), board(model, "other").measure_floor():
        run(model)


def test_a_floor_is_set_in_the_layers_where_it_was_measured():
    """As after concatenating an adapter that has one and an adapter of other layers that has none."""
    model = wake(get_peft_model(transformer(), atom_config(layers_to_transform=[0])))
    with board(model).measure_floor():
        run(model)
    model.add_adapter("other", atom_config(layers_to_transform=[1]))
    model.base_model.add_weighted_adapter(["default", "other"], [1.0, 1.0], "both")
    atoms = board(model, "both")
    atoms.floor = 0.9
    assert atoms.preset() == {"floor": {"L0": 0.9}}
    atoms.apply(atoms.preset())
    assert atoms["L0"].floor == pytest.approx(0.9) and atoms["L1"].floor == 0


def test_concatenated_adapters_keep_their_floors(tmp_path):
    model = wake(get_peft_model(transformer(), atom_config()))
    wake(model.add_adapter("other", atom_config()) or model)
    with board(model).measure_floor():
        run(model)
    board(model).floor = 0.9
    model.base_model.add_weighted_adapter(["default", "other"], [1.0, 1.0], "both")
    for own, both in zip(board(model).dictionaries, board(model, "both").dictionaries):
        half = own.num_atoms
        λ, joined = own.floor.threshold, both.floor.threshold
        assert λ is not None and joined is not None and torch.equal(joined[:half], λ)
        assert (joined[half:] < 0).all()  # every code of the other passes
    atoms = board(model, "both")
    atoms.floor = 1.0  # of the atoms that were measured
    assert atoms.floor == 0.5 and atoms.preset() == {"floor": {"L0": 1.0, "L1": 1.0}}
    atoms.apply(atoms.preset())
    assert atoms.floor == 0.5
