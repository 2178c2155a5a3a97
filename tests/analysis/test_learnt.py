"""Was the subject learnt: the judge compares on moji, the loss with held noise tells elsewhere."""

import numpy as np
import pytest
import torch
from PIL import Image

from atomtune import metrics
from atomtune.analysis import learnt as module
from atomtune.analysis.examples import training_examples
from atomtune.analysis.learnt import NOISE, Learnt, learnt
from atomtune.prompts import Subject
from tests.analysis.tiny import adapted_pixart


class Judge:
    """Scores that are read off the images: their first pixel, in hundredths."""

    def fidelity(self, images, references):
        return np.array([image.getpixel((0, 0))[0] / 100 for image in images])

    def rank(self, images, names):
        assert set(names) == {"teapot"}
        return np.arange(len(images))


def image_of(fidelity: float) -> Image.Image:
    return Image.new("RGB", (64, 64), (round(100 * fidelity), 0, 0))


@pytest.fixture(scope="module")
def pipe():
    return adapted_pixart()


@pytest.fixture
def run(tmp_path):
    for number in range(2):
        image_of(0.9).save(tmp_path / f"{number}.png")
    (tmp_path / "0.txt").write_text("a sks teapot on a shelf")
    return {"images": str(tmp_path), "token": "sks", "class_name": "teapot"}


def test_the_images_of_the_run_are_shown_with_their_captions(pipe, run):
    found = learnt(pipe, run, {})
    assert [words for _, words in found.images] == ["a sks teapot on a shelf", "a sks teapot"]
    assert not found.missing


def test_elsewhere_the_loss_on_held_noise_is_measured_without_and_with_the_adapter(pipe, run):
    found = learnt(pipe, run, {})
    examples = training_examples(pipe, run["images"], "a sks teapot", seed=NOISE)
    with torch.no_grad():
        with_it = float(examples.losses().mean())
        with pipe.transformer.disable_adapter():
            without = float(examples.losses().mean())
    assert found.numbers == pytest.approx({"held_loss_before": without, "held_loss": with_it}, rel=1e-4)
    assert "without the adapter" in str(found)


def test_on_moji_the_judge_compares_the_drawings_with_the_images(pipe, run, monkeypatch):
    monkeypatch.setattr(module.bases, "MOJI", pipe.name_or_path)
    monkeypatch.setattr(metrics, "load_judge", Judge)
    drawn = {prompt: (image_of(0.1), image_of(0.8)) for prompt in ("a", "b", "c")}
    found = learnt(pipe, run, drawn, [Subject("sks", "teapot")])
    assert found.numbers == pytest.approx({"fidelity_before": 0.1, "fidelity": 0.8, "recognised": 1, "drawings": 3})
    assert "fidelity of 0.80" in str(found) and "1 of 3 drawings for a teapot" in str(found)
    assert found.verdict == "This subject was learnt."
    assert (
        "recognised" not in learnt(pipe, run, drawn, [Subject("sks", "my own thing")]).numbers
    )  # the judge does not know the word
    assert learnt(pipe, run, {"a": (image_of(0.1), image_of(0.2))}).little


@pytest.mark.parametrize("judged", [True, False])
def test_each_of_several_subjects_is_compared_with_its_own_images(pipe, tmp_path, monkeypatch, judged):
    if judged:
        monkeypatch.setattr(module.bases, "MOJI", pipe.name_or_path)
        monkeypatch.setattr(metrics, "load_judge", Judge)
    for name, count in (("1_sks teapot", 1), ("3_ohwx thing", 2)):
        (tmp_path / name).mkdir()
        for number in range(count):
            image_of(0.9 - 0.1 * number).save(tmp_path / name / f"{number}.png")
    drawn = {"a sks teapot": (image_of(0.1), image_of(0.8)), "a ohwx thing": (image_of(0.1), image_of(0.2))}
    found = learnt(pipe, {"images": str(tmp_path)}, drawn, [Subject("ohwx", "thing"), Subject("sks", "teapot")])
    assert [words for _, words in found.images] == ["a sks teapot", "a ohwx thing", "a ohwx thing"]
    assert list(found.each) == ["sks teapot", "ohwx thing"] and not found.numbers
    if judged:
        assert [one.numbers["fidelity"] for one in found.each.values()] == pytest.approx([0.8, 0.2])
        assert found.verdict == "“sks teapot” was learnt. “ohwx thing” was hardly learnt." and found.little
        assert str(found).startswith("sks teapot: The drawings have a fidelity of 0.80")
    else:
        examples = training_examples(pipe, tmp_path, "not used", seed=NOISE)
        with torch.no_grad():
            losses = examples.losses().unflatten(0, (4, 3)).mean(0)
        expected = [float(losses[0]), float(losses[1:].mean())]
        assert [one.numbers["held_loss"] for one in found.each.values()] == pytest.approx(expected, rel=1e-4)


def test_images_of_different_subjects_are_not_for_the_judge(pipe, run, monkeypatch):
    monkeypatch.setattr(module.bases, "MOJI", pipe.name_or_path)
    monkeypatch.setattr(metrics, "load_judge", Judge)
    for number in range(2):
        image_of(0.1).save(f"{run['images']}/{number}.png")
    assert "held_loss" in learnt(pipe, run, {"a": (image_of(0.1), image_of(0.8))}).numbers


def test_images_that_are_not_there_are_said(pipe, run, tmp_path):
    assert "no run is beside it" in learnt(pipe, None, {}).missing
    gone = learnt(pipe, run | {"images": str(tmp_path / "gone")}, {})
    assert "there is no folder" in gone.missing and not gone.images
    assert not gone.little and not str(gone)


def test_a_loss_that_did_not_fall_is_a_subject_that_was_hardly_learnt():
    assert Learnt(numbers={"held_loss_before": 0.1, "held_loss": 0.099}).little
    assert not Learnt(numbers={"held_loss_before": 0.1, "held_loss": 0.08}).little
