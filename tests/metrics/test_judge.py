"""The judge that ships, on real drawings in scenes it has not seen, and its formulas."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from atomtune.errors import UserError
from atomtune.metrics import load_judge, vendi
from atomtune.moji.scenes import caption, compose
from tests.metrics.scenes import NAMES, drawing, every_scene, picture


@pytest.fixture(scope="module")
def judge():
    return load_judge()


@pytest.fixture(scope="module")
def scenes():
    return every_scene()


@pytest.fixture(scope="module")
def pictures(scenes):
    return [picture(scene) for scene in scenes]


def recoloured(scene):
    """The scene with red, green and blue of its drawing exchanged."""
    red, green, blue, alpha = drawing(scene.name, scene.style).split()
    return compose(Image.merge("RGBA", (blue, red, green, alpha)), scene)


def test_names_and_styles_are_recognised(judge, scenes, pictures):
    assert (judge.rank(pictures, [scene.name for scene in scenes]) == 0).mean() >= 0.9
    assert np.mean([a == scene.style for a, scene in zip(judge.style(pictures), scenes)]) >= 0.9


@pytest.mark.parametrize("words", [lambda scene: scene.name, caption], ids=["name", "caption"])
def test_worse_pictures_score_lower(judge, scenes, pictures, words):
    """Real drawings > blurred > wrong colour > wrong name, noise."""
    noise = np.random.default_rng(0).integers(0, 256, (len(pictures), 64, 64, 3), dtype=np.uint8)
    groups = [
        pictures,
        [image.filter(ImageFilter.GaussianBlur(1.5)) for image in pictures],
        [recoloured(scene) for scene in scenes],
        pictures[1:] + pictures[:1],
        list(noise),
    ]
    prompts = [words(scene) for scene in scenes]
    means = [judge.alignment(group, prompts).mean() for group in groups]
    *drawn, noisy = means
    assert drawn == sorted(drawn, reverse=True)
    assert noisy < drawn[2]  # another thing and no thing at all are both near zero, in no fixed order
    assert means[0] - max(means[3:]) > 0.5


def test_a_prompt_is_more_than_its_name(judge, scenes):
    """The background and the size that a prompt asks for raise its score; places are read off the pixels."""
    scenes = [replace(scene, background="blue", size="small", place="top") for scene in scenes]
    prompts = [caption(scene) for scene in scenes]
    right = judge.alignment([picture(scene) for scene in scenes], prompts)
    for wrong in ({"background": "yellow"}, {"size": "normal"}):
        others = judge.alignment([picture(replace(scene, **wrong)) for scene in scenes], prompts)
        assert (right > others).mean() >= 0.75, wrong


def test_fidelity_is_of_the_subject_not_of_the_background(judge, scenes, pictures):
    elsewhere = [picture(replace(scene, background="purple", size="small", place="left")) for scene in scenes]
    table = np.stack([judge.fidelity(pictures, [reference]) for reference in elsewhere], axis=1)
    same = np.diagonal(table)
    different = table[~np.eye(len(scenes), dtype=bool)]
    assert same.mean() > 0.8
    assert (same > np.quantile(different, 0.98)).mean() >= 0.9


def test_fidelity_is_the_mean_over_references(judge, pictures):
    each = [judge.fidelity(pictures[:3], [reference]) for reference in pictures[5:8]]
    np.testing.assert_allclose(judge.fidelity(pictures[:3], pictures[5:8]), np.mean(each, axis=0), atol=1e-6)


def test_a_name_reads_like_its_prompt(judge, pictures):
    np.testing.assert_allclose(judge.alignment(pictures[:1], ["cat"]), judge.alignment(pictures[:1], ["a cat"]))


def test_scores_do_not_depend_on_the_batch(judge, pictures):
    together = judge.features(pictures)
    assert together.shape == (len(pictures), 320)
    np.testing.assert_allclose(together[3:4], judge.features(pictures[3:4]), atol=1e-4)
    np.testing.assert_allclose(together[:2], judge.features([np.asarray(image) for image in pictures[:2]]), atol=1e-4)


def test_other_sizes_are_resized(judge, pictures):
    large = [image.resize((256, 256)) for image in pictures]
    assert (judge.rank(large, NAMES * 2) == 0).mean() >= 0.85


def test_an_unknown_name_is_refused(judge, pictures):
    with pytest.raises(UserError, match=r"does not know \['tea pot'\]"):
        judge.rank(pictures[:1], ["tea pot"])


def test_one_prompt_for_each_picture(judge, pictures):
    with pytest.raises(ValueError, match="got 1 for 2 images"):
        judge.alignment(pictures[:2], ["a cat"])


def test_its_own_accuracy_comes_along(judge):
    assert judge.accuracy["name_top1"] >= 0.9
    assert judge.accuracy["style"] >= 0.9
    for key in ("name_top1", "style", "without_fluent_name_top1"):
        assert f"{judge.accuracy[key]:.1%}" in str(judge)
    for key in ("alignment_real", "fidelity_same_drawing"):
        assert f"{judge.accuracy[key]:.3f}" in str(judge)


def test_over_a_thousand_scenes_noise_comes_last(judge):
    kinds = ("real", "blurred", "wrong_colour", "wrong_name", "noise")
    for of in ("alignment", "alignment_of_name"):
        means = [judge.accuracy[f"{of}_{kind}"] for kind in kinds]
        assert means == sorted(means, reverse=True)


@given(seed=st.integers(0, 2**16), count=st.integers(1, 6), width=st.integers(1, 8))
def test_diversity_is_the_vendi_score(seed, count, width):
    """exp(-Σ λ log λ) over the eigenvalues λ of K / n, K the cosines; between 1 and n."""
    X = np.random.default_rng(seed).normal(size=(count, width))
    X_unit = X / np.linalg.norm(X, axis=1, keepdims=True)
    eigenvalues = np.linalg.eigvalsh(X_unit @ X_unit.T / count)
    eigenvalues = eigenvalues[eigenvalues > 1e-15]
    np.testing.assert_allclose(vendi(X), np.exp(-(eigenvalues * np.log(eigenvalues)).sum()), rtol=1e-9)
    assert 1 - 1e-9 <= vendi(X) <= count + 1e-9


def test_diversity_counts_different_pictures(judge, pictures):
    same, different = judge.features(pictures[:1] * 6), judge.features(pictures[:6])
    assert vendi(same) == pytest.approx(1, abs=1e-6)
    assert vendi(different) > 4
