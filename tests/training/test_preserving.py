"""Output matching: on other prompts the target is the base's own answer."""

import json
import shutil
import signal
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

import atomtune
from atomtune.analysis.examples import training_examples
from atomtune.bases import BaseParts, denoiser
from atomtune.bases.families import FAMILIES
from atomtune.errors import UserError
from atomtune.metrics import other_prompts as measured_prompts
from atomtune.prompts import EVERYDAY
from atomtune.training import configure, encoding, preserving
from atomtune.training.preserving import DRAWS, answered, other_prompts
from atomtune.training.trainer import Trainer
from tests.training.quick import state, weights

CLASS = "dog"
GIVEN = {"images": "photos", "class_name": CLASS, "out": "out", "preserve": True}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ATOMTUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "preserve"


def parts(base):
    return BaseParts(base, torch.float32)


@pytest.fixture
def prompts(tmp_path):
    file = tmp_path / "others.txt"
    file.write_text("a cat\n\na car on a hill\n", encoding="utf-8")
    return file


def test_the_targets_are_what_the_base_answers(base, prompts, cache):
    config = configure(**GIVEN, base=base, preserve_prompts=prompts)
    pipe = atomtune.load_base(base)
    others = answered(parts(base), config, other_prompts(config, [CLASS]), 16, Accelerator(cpu=True))
    assert len(others.conditionings) == len(others.examples.weight) == 2 * DRAWS
    turns = [["a cat", "a car on a hill"][(image + draw) % 2] for image in range(2) for draw in range(DRAWS)]
    for place, prompt in enumerate(turns):
        example = others.examples.rows(slice(place, place + 1))
        conditioning = encoding.encode_caption(pipe, prompt, 16)
        with torch.no_grad():
            answer = denoiser(pipe)(example.noisy, timestep=example.timesteps, **conditioning).sample
        assert_close(answer[:, :4], example.target)
    assert torch.equal(others.examples.weight, torch.ones(2 * DRAWS))


def test_answers_are_computed_once_for_a_base_and_its_prompts(base, other_base, prompts, cache, monkeypatch):
    accelerator = Accelerator(cpu=True)

    def found(base, **options):
        config = configure(**GIVEN | options, base=base, preserve_prompts=prompts)
        return answered(parts(base), config, other_prompts(config, [CLASS]), 16, accelerator)

    first = found(base)
    found(other_base)
    assert len(list(cache.iterdir())) == 2
    monkeypatch.setattr(preserving.sampling, "generate", None)  # nothing is drawn any more
    again = found(base, out="another run", class_name="cat", seed=5)
    assert len(again.conditionings) == len(first.conditionings)
    names = [field.name for field in fields(first.examples) if field.name != "mask"]  # which they have none of
    for name in names:
        assert torch.equal(getattr(again.examples, name), getattr(first.examples, name))
    prompts.write_text("a car on a hill\na cat\n", encoding="utf-8")
    other = found(base)  # each image by itself
    for name in names:
        assert torch.equal(getattr(other.examples, name), getattr(first.examples, name).roll(DRAWS, 0))
    prompts.write_text("a tree\n", encoding="utf-8")
    with pytest.raises(TypeError):  # other prompts are drawn
        found(base)


def test_answers_of_a_base_with_another_text_encoder_are_others(base, prompts, cache, tmp_path):
    """The denoiser alone does not decide what a base draws, and its answers would fit no more."""
    folder = str(shutil.copytree(base, tmp_path / "changed"))

    def found():
        config = configure(**GIVEN, base=folder, preserve_prompts=prompts)
        return answered(parts(folder), config, other_prompts(config, [CLASS]), 16, Accelerator(cpu=True))

    first = found().conditionings[0]["encoder_hidden_states"]
    (weights,) = (tmp_path / "changed" / "text_encoder").glob("*.safetensors")
    tensors = load_file(weights)
    save_file({name: -0.5 * tensor for name, tensor in tensors.items()}, weights, {"format": "pt"})
    pipe = atomtune.load_base(folder)
    second = found().conditionings[0]["encoder_hidden_states"]
    assert not torch.equal(first, second)
    assert torch.equal(second, encoding.encode_caption(pipe, "a cat", 16)["encoder_hidden_states"])


@pytest.mark.parametrize("content", [b"", b"not a file of torch", b"PK\x03\x04 half"])
def test_kept_answers_that_are_damaged_are_one_sentence(base, prompts, cache, content):
    config = configure(**GIVEN, base=base, preserve_prompts=prompts)
    arguments = (config, other_prompts(config, [CLASS]), 16, Accelerator(cpu=True))
    answered(parts(base), *arguments)
    damaged = next(cache.rglob("*.pt"))
    damaged.write_bytes(content)
    with pytest.raises(UserError, match=f"{damaged.name}.*remove it"):
        answered(parts(base), *arguments)
    damaged.unlink()
    answered(parts(base), *arguments)


def test_a_cache_folder_that_cannot_be_written_is_refused_before_anything_is_drawn(
    base, prompts, tmp_path, monkeypatch
):
    (tmp_path / "file").touch()
    monkeypatch.setenv("ATOMTUNE_CACHE", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr(preserving, "_answers", None)
    config = configure(**GIVEN, base=base, preserve_prompts=prompts)
    with pytest.raises(UserError, match="set the environment variable ATOMTUNE_CACHE"):
        answered(parts(base), config, other_prompts(config, [CLASS]), 16, Accelerator(cpu=True))


def test_the_loss_is_that_of_the_images_and_the_weighted_mean_of_the_others(run, base, images, prompts, monkeypatch):
    """L = L_subject + w · mean |f_adapted - f_base|², in the first step, where f_adapted is f_base: it adds nothing."""
    plain = run("plain", steps=1, target_modules=("attn1",))
    kept = run("kept", steps=1, preserve=True, preserve_prompts=prompts, preserve_weight=1e6)
    assert kept["loss"] == pytest.approx(plain["loss"], rel=1e-4)


@pytest.mark.parametrize(
    ("share", "batch_size", "counts"),
    [(0.2, 5, [1, 1, 1, 1, 1, 1]), (0.25, 1, [0, 0, 0, 1, 0, 0]), (1.5, 1, [1, 2, 1, 2, 1, 2])],
)
def test_so_many_other_prompts_are_beside_the_images(run, prompts, monkeypatch, share, batch_size, counts):
    """A share of the images, on average over steps, and so is their weight in the loss: w · Σ / (share · batch)."""
    drawn, draw = [], preserving.Others.draw
    monkeypatch.setattr(preserving.Others, "draw", lambda self, n, g: (drawn.append(n), draw(self, n, g))[1])
    monkeypatch.setattr(Trainer, "_measure_floor", lambda self: None)
    run(preserve=True, preserve_prompts=prompts, preserve_share=share, batch_size=batch_size, steps=6)
    assert drawn == counts


def test_a_share_of_less_than_one_example_in_the_run_is_said(run, prompts, caplog):
    run("none", preserve=True, preserve_prompts=prompts, preserve_share=0.1)  # of 8 images
    assert "preserve_share = 0.1 is less than one example" in caplog.text
    caplog.clear()
    run("one", preserve=True, preserve_prompts=prompts, preserve_share=0.125)
    assert "less than one example" not in caplog.text


def test_a_preserving_run_drifts_less_on_what_it_preserves(run, base, images, prompts, tmp_path):
    options = {"steps": 30, "learning_rate": 3e-3}
    run("plain", **options)
    run("kept", preserve=True, preserve_prompts=prompts, preserve_share=2.0, preserve_weight=20.0, **options)
    config = configure(**GIVEN, base=base, preserve_prompts=prompts)
    resolution = json.loads((tmp_path / "plain" / "summary.json").read_text())["resolution"]
    others = answered(parts(base), config, other_prompts(config, [CLASS]), resolution, Accelerator(cpu=True))

    def distance(out: str) -> float:
        pipe = atomtune.load_base(base)
        model = atomtune.load_adapter(pipe, tmp_path / out)
        conditioning = encoding.collate(others.conditionings, FAMILIES[0])
        with torch.no_grad():
            answer = model(others.examples.noisy, timestep=others.examples.timesteps, **conditioning).sample
        return float((answer[:, :4] - others.examples.target).square().mean())

    assert distance("kept") < 0.5 * distance("plain")


def test_a_preserving_run_that_was_stopped_ends_with_the_same_bits(run, prompts, tmp_path):
    options = {"preserve": True, "preserve_prompts": prompts}
    run("whole", steps=4, **options)
    run("parts", steps=2, **options)
    run("parts", steps=4, **options)
    whole, parts = state(tmp_path / "whole"), state(tmp_path / "parts")
    assert weights(tmp_path / "whole") == weights(tmp_path / "parts")
    assert {name: parts[name] for name in whole if name in parts} == {
        name: whole[name] for name in whole if name in parts
    }


def test_other_prompts_are_another_run(run, prompts):
    run(preserve=True, preserve_prompts=prompts, steps=1)
    prompts.write_text("a tree\n", encoding="utf-8")
    with pytest.raises(atomtune.UserError, match="other prompts to preserve there than now"):
        run(preserve=True, preserve_prompts=prompts, steps=2)


@pytest.mark.parametrize("base", ["moji", "somewhere/else"])
def test_made_up_prompts_are_none_of_those_that_drift_is_measured_on(base):
    groups = other_prompts(configure(**GIVEN | {"class_name": "teapot"}, base=base), ["teapot"])
    made_up = {prompt for group in groups for prompt in group}
    sets = measured_prompts("teapot")
    assert len(groups) == len(set(groups)) and groups[-1] == ("",) * DRAWS
    assert len(made_up) == len(EVERYDAY) + 1  # all of them are said
    page = Path("docs/how-to/keep-the-rest.md").read_text(encoding="utf-8")
    assert f"{len(groups)} images" in page
    assert not set(made_up) & {*sets["unrelated"], *sets["neighbours"]}
    assert not any("teapot" in prompt for prompt in made_up)  # it would keep the subject from being learnt
    assert any("coffee" in first for first, *_ in groups)  # but what is like it is drawn


def test_a_class_that_is_an_everyday_thing_is_said_in_no_example():
    groups = other_prompts(configure(**GIVEN | {"class_name": EVERYDAY[7]}, base="moji"), [EVERYDAY[7]])
    assert not any(f" {EVERYDAY[7]} on" in prompt for group in groups for prompt in group)
    assert len({prompt for group in groups for prompt in group}) == len(EVERYDAY)


@pytest.mark.parametrize(("text", "sentence"), [("\n \n", "is empty"), (None, "could not be read")])
def test_prompts_that_cannot_be_used_are_refused(run, tmp_path, text, sentence):
    file = tmp_path / "none.txt"
    if text is not None:
        file.write_text(text)
    with pytest.raises(atomtune.UserError, match=sentence):
        run(preserve=True, preserve_prompts=file, base="nowhere")


def test_a_prompt_with_what_is_learnt_is_refused(run, tmp_path):
    """Its target would be what the base draws without the subject."""
    file = tmp_path / "others.txt"
    file.write_text("a cat\na sks dog in the snow\n")
    with pytest.raises(atomtune.UserError, match=r"'a sks dog in the snow'.*leave this prompt out"):
        run(preserve=True, preserve_prompts=file)
    assert not (tmp_path / "run").exists()


def test_a_floor_is_measured_and_saved_with_the_adapter(run, base, prompts, tmp_path):
    options = {"steps": 10, "preserve": True, "preserve_prompts": prompts}
    run("measured", **options)
    run("floored", floor=1.0, **options)
    measured, floored = (
        atomtune.board(atomtune.load_adapter(atomtune.load_base(base), tmp_path / out))
        for out in ("measured", "floored")
    )
    assert (measured.floor, floored.floor) == (0.0, 1.0)
    for atoms in (measured, floored):
        assert all((d.floor.levels >= 0).all() for d in atoms.dictionaries)
    assert floored.preset() == {}
    measured.floor = 0.99
    assert measured.preset() == {"floor": {"L0": 0.99, "L1": 0.99}}


def test_a_run_with_a_floor_begins_with_matched_filters(run, base, images, prompts, tmp_path, monkeypatch):
    """More tokens of the images are above the floor than from a random start, and no two atoms are the same. W_s does
    not train after the floor, here from the beginning."""
    options = {"steps": 2, "preserve": True, "preserve_prompts": prompts, "floor_start": 0.0, "floor": 1.0}
    options["target_modules"] = ("to_v",)
    run("matched", **options)
    run("further", init_adapter=tmp_path / "matched", **options)
    monkeypatch.setattr(Trainer, "_start_matched", lambda self: None)
    run("random", **options)
    silent, encoders = {}, {}
    for out in ("matched", "further", "random"):
        pipe = atomtune.load_base(base)
        atomtune.load_adapter(pipe, tmp_path / out)
        with atomtune.trace(pipe) as seen:
            training_examples(pipe, images, "a sks dog").outputs()
        silent[out] = seen.silent
        encoders[out] = [dictionary.encoder.weight.detach() for dictionary in atomtune.board(pipe).dictionaries]
    assert silent["matched"] < silent["random"]
    for matched, further, random in zip(*encoders.values()):
        length = matched.norm(dim=1)
        assert_close(length, random.norm(dim=1).mean().expand(len(length)))
        assert ((matched @ matched.T).abs() / length[0] ** 2).fill_diagonal_(0).max() < 0.9999
        assert torch.equal(matched, further)


@pytest.mark.parametrize("activation", ["batch_topk", "relu", "soft", "jumprelu"])
@pytest.mark.parametrize("modules", [("attn1",), ("to_v",)])
def test_a_floor_goes_with_every_sigma(run, base, prompts, tmp_path, activation, modules):
    options = {"preserve": True, "preserve_prompts": prompts, "floor": 1.0, "target_modules": modules}
    run(activation=activation, steps=3, threshold=0.1, **options)
    atoms = atomtune.board(atomtune.load_adapter(atomtune.load_base(base), tmp_path / "run"))
    assert atoms.floor == 1.0 and all(dictionary.floor.measured for dictionary in atoms.dictionaries)


def test_a_floor_is_measured_once_after_its_share_of_the_run(run, prompts, monkeypatch):
    steps, measure = [], Trainer._measure_floor
    monkeypatch.setattr(Trainer, "_measure_floor", lambda self: (steps.append(self.step), measure(self)))
    run("long", steps=20, preserve=True, preserve_prompts=prompts, floor=0.9, floor_start=0.65)
    assert steps == [13]
    steps.clear()
    run("short", steps=1, preserve=True, preserve_prompts=prompts, floor=0.9)
    assert steps == [0]


def test_with_a_floor_of_1_the_finished_run_answers_its_other_prompts_as_the_base_does(run, base, prompts, tmp_path):
    """To the bit, though D trained on after the floor was measured, because W_s did not."""
    options = {"steps": 12, "learning_rate": 3e-2, "target_modules": ("to_v",), "checkpoint_every": 6}
    run("kept", preserve=True, preserve_prompts=prompts, floor=1.0, **options)
    config = configure(**GIVEN, base=base, preserve_prompts=prompts)
    resolution = json.loads((tmp_path / "kept" / "summary.json").read_text())["resolution"]
    others = answered(parts(base), config, other_prompts(config, [CLASS]), resolution, Accelerator(cpu=True))
    pipe = atomtune.load_base(base)
    model = atomtune.load_adapter(pipe, tmp_path / "kept")
    conditioning = encoding.collate(others.conditionings, FAMILIES[0])
    call = {"timestep": others.examples.timesteps, **conditioning}
    with torch.no_grad():
        answer = model(others.examples.noisy, **call).sample
        other = model(others.examples.noisy + 1, **call).sample
        with model.disable_adapter():
            assert torch.equal(answer, model(others.examples.noisy, **call).sample)
            assert not torch.equal(other, model(others.examples.noisy + 1, **call).sample)
    middle = tmp_path / "kept" / "checkpoints" / "step-000006"
    (before,), after = middle.glob("**/adapter_model.safetensors"), tmp_path / "kept/adapter/adapter_model.safetensors"
    before, after = load_file(before), load_file(after)
    assert all(torch.equal(before[name], after[name]) == ("decoder" not in name) for name in after if "weight" in name)


@pytest.mark.parametrize("activation", ["topk", "jumprelu"])
def test_what_a_floor_of_1_silences_is_no_longer_drawn(run, prompts, tmp_path, monkeypatch, activation):
    """Other prompts are beside the images until the floor is there; then they would change nothing that is learnt."""
    options = {"steps": 12, "learning_rate": 3e-2, "threshold": 0.1, "floor_start": 0.5, "activation": activation}
    options["checkpoint_every"] = 6
    drawn, draw = [], preserving.Others.draw
    monkeypatch.setattr(preserving.Others, "draw", lambda self, n, g: (drawn.append(n), draw(self, n, g))[1])
    learnt = []
    for out in ("without", "with"):
        run(out, preserve=True, preserve_prompts=prompts, preserve_share=1.0, floor=1.0, batch_size=1, **options)
        learnt.append(load_file(tmp_path / out / "adapter" / "adapter_model.safetensors"))
        monkeypatch.setattr(Trainer, "_is_silent_on_others", lambda self: False)
    assert drawn == [1] * 6 + [0] * 6 + [1] * 12
    weights = [{name: value for name, value in each.items() if "weight" in name} for each in learnt]
    assert_close(*weights, rtol=0, atol=1e-6)  # in float32, summed over batches of another size
    (middle,) = (tmp_path / "without" / "checkpoints" / "step-000006").glob("**/adapter_model.safetensors")
    middle = load_file(middle)
    assert any((middle[name] - value).abs().max() > 1e-3 for name, value in weights[0].items() if "decoder" in name)


@pytest.mark.parametrize(
    ("options", "measured"),
    [({"floor": 0.99}, 400), ({"activation": "batch_topk"}, 400), ({"density_start": 1.0}, 400), ({}, 1)],
)
def test_what_a_floor_may_not_silence_is_drawn_to_the_end(run, prompts, monkeypatch, options, measured):
    drawn, draw = [], preserving.Others.draw
    monkeypatch.setattr(preserving.Others, "draw", lambda self, n, g: (drawn.append(n), draw(self, n, g))[1])
    monkeypatch.setattr(preserving, "MEASURED", measured)
    options = {"floor": 1.0, "floor_start": 0.5} | options
    run(preserve=True, preserve_prompts=prompts, preserve_share=1.0, batch_size=1, steps=4, **options)
    assert drawn == [1] * 4


@pytest.mark.parametrize(("first", "then", "measured"), [(11, 14, 11), (11, 40, 20), (25, 40, 20)])
def test_a_floor_is_measured_once_though_the_length_of_the_run_changes(
    run, prompts, tmp_path, monkeypatch, first, then, measured
):
    """A run of 40 steps that is stopped and continued to another number: its floor was due at half of that."""
    options = {"preserve": True, "preserve_prompts": prompts, "floor": 1.0, "floor_start": 0.5, "checkpoint_every": 5}
    steps, measure, advance = [], Trainer._measure_floor, Trainer._advance
    monkeypatch.setattr(Trainer, "_measure_floor", lambda self: (steps.append(self.step), measure(self)))
    with monkeypatch.context() as patch:
        patch.setattr(
            Trainer,
            "_advance",
            lambda self: advance(self) if self.step < first else signal.raise_signal(signal.SIGTERM),
        )
        with pytest.raises(KeyboardInterrupt):
            run("run", steps=40, **options)
    run("run", steps=then, **options)
    assert steps == [measured]
    kept = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    assert all((value >= 0).all() for name, value in kept.items() if "floor.levels" in name)


def test_measuring_a_floor_does_not_count_as_training(run, prompts, tmp_path):
    """In the numbers of the run and in the usage of its atoms: the codes are zero while a floor is measured."""
    options = {"steps": 2, "preserve": True, "preserve_prompts": prompts, "measure_every": 1}
    plain, measured = run("plain", **options), run("measured", floor=1e-9, floor_start=0.0, **options)
    assert measured["active_per_token"] == pytest.approx(plain["active_per_token"], rel=0.01)


def test_an_adapter_that_is_trained_further_has_the_floor_of_the_run(run, base, prompts, tmp_path, caplog):
    """What was measured of its atoms as they were says nothing about what they become."""
    run("kept", steps=2, preserve=True, preserve_prompts=prompts, floor=0.9)
    run("on", steps=2, init_adapter=tmp_path / "kept")
    atoms = atomtune.board(atomtune.load_adapter(atomtune.load_base(base), tmp_path / "on"))
    assert atoms.floor == 0 and not any(d.floor.measured for d in atoms.dictionaries)
    assert "floor" in caplog.text
    config = json.loads((tmp_path / "on" / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["floor"] == 0


def test_a_run_with_a_floor_that_was_stopped_ends_with_the_same_bits(run, prompts, tmp_path, monkeypatch):
    options = {"preserve": True, "preserve_prompts": prompts, "floor": 0.9, "floor_start": 0.2, "checkpoint_every": 5}
    run("whole", steps=10, **options)
    advance = Trainer._advance
    with monkeypatch.context() as patch:
        patch.setattr(
            Trainer, "_advance", lambda self: advance(self) if self.step < 7 else signal.raise_signal(signal.SIGTERM)
        )
        with pytest.raises(KeyboardInterrupt):
            run("parts", steps=10, **options)
    run("parts", steps=10, **options)
    assert state(tmp_path / "whole") == state(tmp_path / "parts")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"preserve": False, "floor": 0.9}, "switch preserve on"),
        ({"preserve_share": 0.0}, "preserve_share must be above 0"),
        ({"floor": 1.5}, "floor must be from 0"),
        ({"floor": 0.9, "floor_start": 1.0}, "floor_start must be in"),
        ({"floor": 0.9, "method": "lora"}, "a floor belongs to atoms"),
        ({"preserve": False, "preserve_prompts": "others.txt"}, "switch preserve on"),
    ],
)
def test_a_floor_that_cannot_be_is_refused(options, sentence):
    with pytest.raises(UserError, match=sentence):
        configure(**GIVEN | options)
