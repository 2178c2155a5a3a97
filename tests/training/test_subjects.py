"""Several subjects in one run, and images that are seen several times in an epoch: folders as kohya names them."""

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import atomtune
from atomtune.errors import UserError
from atomtune.shipped import IMAGES
from atomtune.storage.reading import adapter_info
from atomtune.training import configure, encoding, outcome
from atomtune.training.data import find_examples, image_files, subject_folders
from atomtune.training.preserving import NEAR, other_prompts
from atomtune.training.subjects import shown_in
from tests.training.quick import QUICK, state, weights

TWO = ("2_sks dog", "1_ohwx cat")


def fill(folder: Path, *names: str) -> Path:
    """Random images into folders of these names: one, two, three, ..."""
    random = np.random.default_rng(0)
    for count, name in enumerate(names, start=1):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            image = Image.fromarray(random.integers(0, 256, (64, 64, 3), dtype=np.uint8))
            image.save(folder / name / f"{number}.png")
    return folder


@pytest.fixture
def photos(tmp_path) -> Path:
    return fill(tmp_path / "photos", *TWO)


@pytest.fixture
def learn(base, photos, tmp_path):
    def learn(out: str, **options):
        given = {**QUICK, "class_name": None, "images": photos, "base": base, "out": tmp_path / out, **options}
        return atomtune.customize(**given)

    return learn


def test_names_of_folders_say_repeats_token_and_class(photos, caplog):
    (photos / "1_ohwx cat" / "0.txt").write_text("a photo of ohwx cat")
    folders = [(folder.repeats, folder.token, folder.class_name) for folder in subject_folders(photos)]
    assert folders == [(1, "ohwx", "cat"), (2, "sks", "dog")]
    captions = find_examples(photos, "not used")
    assert list(captions.values()) == ["a photo of ohwx cat", "a ohwx cat", "a sks dog"]
    assert not caplog.text
    (photos / "1_ohwx cat" / "1.txt").write_text("a photo of a cat")
    (photos / "notes").mkdir()
    find_examples(photos, "not used")
    assert "1_ohwx cat: the token 'ohwx' of the folder is not in the captions of 1.png" in caplog.text
    assert "beside the folders of images, and not read: notes" in caplog.text
    assert image_files(photos) == list(captions)
    shown = shown_in(configure(images=photos, out="out"), captions)
    assert [str(subject) for subject in shown.subjects] == ["ohwx cat", "sks dog"]
    assert (shown.of, shown.order, shown.classes) == ((0, 0, 1), [0, 1, 2, 2], ["cat", "dog"])
    assert shown.subject_in("a sks dog on a hill") == 1 and shown.subject_in("an ohwxy cat") is None
    assert shown.subject_in("a sks dog and a ohwx cat") is None


def test_two_folders_may_show_one_subject(tmp_path):
    shown = shown_in(
        configure(images=fill(tmp_path, "3_sks garden gnome", "1_sks garden  gnome"), out="out"),
        find_examples(tmp_path, "not used"),
    )
    assert [str(subject) for subject in shown.subjects] == ["sks garden gnome"]
    assert (shown.of, shown.repeats) == ((0, 0, 0), (1, 1, 3))


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (("1_sks dog", "more dogs"), "'more dogs' in .* is not named REPEATS_TOKEN CLASS as '1_sks dog' is: rename it"),
        (("1_sks dog", "5_sks"), "the folder '5_sks' in .* is not named"),
        (("0_sks dog",), "the folder '0_sks dog' must begin with a number from 1 to 10000"),
        (("99999999999_sks dog",), "the folder '99999999999_sks dog' must begin with a number from 1 to 10000"),
        (("1_sks dog", "2_sks cat"), "one token, 'sks', to a dog and a cat: give each subject a token of its own"),
        (("1_<v> dog",), "'<v>' in 'a <v> dog' would be lost"),
        (("dogs",), "or in folders with names such as '10_sks teapot'"),
        (("1_sks dog", "."), "holds images, and folders of subjects such as '1_sks dog' too"),
    ],
)
def test_other_names_are_refused(tmp_path, names, sentence):
    folder = fill(tmp_path / "photos", *(name for name in names if name != "."))
    if "." in names:
        Image.new("RGB", (8, 8)).save(folder / "stray.png")
    with pytest.raises(UserError, match=sentence):
        find_examples(folder, "a sks dog")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"class_name": "bird"}, "name their subjects, and class_name is 'bird': leave it out"),
        ({"token": "zwx"}, "name their subjects, and token is 'zwx'"),
        ({"caption": "a dog"}, "caption is one for all images"),
        ({"class_prompt": "a dog"}, "of 2 classes, and class_prompt is one for all"),
    ],
)
def test_options_for_one_subject_are_refused_beside_several(photos, options, sentence):
    with pytest.raises(UserError, match=sentence):
        shown_in(configure(images=photos, out="out", **options), image_files(photos))


def test_without_names_the_class_must_be_given(images):
    with pytest.raises(UserError, match=r"class_name is missing, .* give --class-name"):
        shown_in(configure(images=images, out="out"), image_files(images))


def test_a_folder_with_a_name_trains_as_its_images_do(run, images, tmp_path):
    named = tmp_path / "photos"
    named.mkdir()
    images.rename(named / "1_sks dog")
    run("named", images=named, class_name=None)
    run("plain", images=named / "1_sks dog")
    assert weights(tmp_path / "named") == weights(tmp_path / "plain")


def test_images_are_seen_as_often_as_their_folder_says(learn, tmp_path, monkeypatch):
    seen, draw = [], encoding.Latents.draw
    monkeypatch.setattr(encoding.Latents, "draw", lambda self, index, g: (seen.extend(index), draw(self, index, g))[1])
    summary = learn("run", steps=None, epochs=2, batch_size=1)
    assert summary["steps"] == 8
    assert sorted(seen[:4]) == sorted(seen[4:8]) == [0, 1, 2, 2]


def test_each_of_two_subjects_is_drawn_scored_and_named(learn, tmp_path):
    summary = learn("run", prior_preservation=True, num_class_images=2)
    assert summary["subjects"] == ["ohwx cat", "sks dog"] and not {"token", "class_name"} & summary.keys()
    each = summary["by_subject"]
    assert list(each) == ["ohwx cat", "sks dog"]
    for name in ("held_loss", "held_loss_before"):
        mean = sum(numbers[name] for numbers in each.values()) / 2  # twelve draws of each
        assert summary[name] == pytest.approx(mean, abs=1e-5)
    prompts = [atomtune.sampling.read_settings(file)["prompt"] for file in summary["samples"]]
    assert prompts == ["a ohwx cat", "a sks dog"]
    drawn = [atomtune.sampling.read_settings(tmp_path / f"run/class_images/{n:04d}.png") for n in range(4)]
    assert [(own["prompt"], own["seed"]) for own in drawn] == [("a cat", 0), ("a cat", 1), ("a dog", 0), ("a dog", 1)]
    said = "\n".join(outcome.told(summary, tmp_path / "run"))
    assert "How well it learnt 'ohwx cat': loss" in said and "How well it learnt 'sks dog': loss" in said
    assert [word for word in shlex.split(summary["next_command"]) if word.startswith("a ")] == [
        "a ohwx cat on the beach",
        "a sks dog on the beach",
    ]
    info = adapter_info(tmp_path / "run")
    assert info.prompts(1) == prompts and "token" not in info.metadata
    assert info.trained_for == {"subjects": [{"token": "ohwx", "class_name": "cat", "backgrounds": []}, *(
        {"token": "sks", "class_name": "dog", "backgrounds": []},
    )]}  # fmt: skip
    card = (tmp_path / "run" / "adapter" / "README.md").read_text()
    assert "'ohwx' is one particular cat and 'sks' is one particular dog, learnt from 3 images" in card
    assert "| subjects | ohwx cat, sks dog |" in card


def test_a_stopped_run_of_two_subjects_goes_on_to_the_bit_and_other_repeats_are_another_run(learn, photos, tmp_path):
    options = {"steps": 6, "sample_every": 2, "prior_preservation": True, "num_class_images": 1}
    learn("whole", **options)
    learn("stopped", **options | {"steps": 2})
    learn("stopped", **options)
    assert state(tmp_path / "stopped") == state(tmp_path / "whole")
    (photos / "2_sks dog").rename(photos / "3_sks dog")
    with pytest.raises(UserError, match="other images, captions or repeats there"):
        learn("whole", **options | {"steps": 8})


def test_what_is_preserved_is_like_every_class_and_none_of_them():
    config = configure(images="photos", out="out", preserve=True, floor=0)
    one, other, both = (other_prompts(config, classes) for classes in (["cat"], ["car"], ["cat", "car"]))

    def drawn(groups: list[tuple[str, ...]]) -> set[str]:
        return {prompts[0].partition(" on ")[0].split(" ", 1)[-1] for prompts in groups[:NEAR]}

    said = {prompt.partition(" on ")[0].split(" ", 1)[-1] for prompts in both for prompt in prompts}
    assert not {"cat", "car"} & said
    assert drawn(both) & drawn(one) and drawn(both) & drawn(other)
    assert len(both) == len(one)


def test_each_sample_is_judged_by_the_images_of_the_subject_that_its_prompt_names(tmp_path):
    """With images of the one as samples of the other, and the other way round, neither is faithful."""
    found = {name: sorted((IMAGES / name).glob("*.png"))[:2] for name in ("teapot", "octopus")}
    for name, token in (("teapot", "sks"), ("octopus", "ohwx")):
        (tmp_path / f"1_{token} {name}").mkdir()
        for file in found[name]:
            (tmp_path / f"1_{token} {name}" / file.name).write_bytes(file.read_bytes())
    config = configure(images=tmp_path, out="out")
    files = image_files(tmp_path)
    shown, references = shown_in(config, files), [Image.open(file).convert("RGB") for file in files]

    def samples(*prompts: str) -> list[str]:
        """An octopus, then a teapot, as if drawn for these prompts."""
        drawn = [tmp_path / f"{number}.sample" for number in range(2)]
        for file, image, prompt in zip(drawn, (references[0], references[2]), prompts):
            atomtune.sampling.save_png(image, file, {"prompt": prompt})
        return [str(file) for file in drawn]

    right = outcome.judged(config, shown, samples("a ohwx octopus", "a sks teapot"), references)
    wrong = outcome.judged(config, shown, samples("a sks teapot", "a ohwx octopus"), references)
    for name in ("ohwx octopus", "sks teapot"):
        assert right["by_subject"][name]["fidelity"] > 0.7 > 0.4 > wrong["by_subject"][name]["fidelity"]
    assert right["fidelity"] == pytest.approx(
        sum(each["fidelity"] for each in right["by_subject"].values()) / 2, abs=1e-3
    )
    together = outcome.judged(config, shown, samples("a sks teapot and a ohwx octopus", "a red ball"), references)
    assert together.keys() == {"alignment", "by_subject"} and together["by_subject"] == {
        "ohwx octopus": {},
        "sks teapot": {},
    }


def test_a_subject_that_was_hardly_learnt_is_named():
    good, bad = {"held_loss": 0.1, "held_loss_before": 0.2}, {"held_loss": 0.2, "held_loss_before": 0.2}
    summary: dict[str, Any] = {"steps": 4, **good, "by_subject": {"ohwx cat": good, "sks dog": bad}}
    assert outcome.learnt_little(summary) == "of 'sks dog' the loss fell by less than 5%"
    said = outcome.told(json.loads(json.dumps(summary)), Path("run"))
    assert any(line.startswith("It learnt little (of 'sks dog' the loss") for line in said)
    summary["by_subject"]["ohwx cat"] = {"fidelity": 0.1, **good}
    both = "of 'ohwx cat' fidelity is below 0.5, of 'sks dog' the loss fell by less than 5%"
    assert outcome.learnt_little(summary) == both
