import numpy as np
import pytest
from PIL import Image

from atomtune.errors import UserError
from atomtune.metrics import div, drift, load_judge, other_prompts, pres
from atomtune.moji.names import HELD_OUT_NAMES, SEEN_NAMES, spoken

rng = np.random.default_rng(0)


def images(count: int) -> list[Image.Image]:
    return [Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)) for _ in range(count)]


def flat(group) -> np.ndarray:
    """A feature model that anyone can compute by hand: the pixels."""
    return np.stack([np.asarray(image, dtype=np.float64).ravel() for image in group])


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def test_drift_is_the_mean_over_pairs_of_what_its_formulas_say():
    before, after = images(5), images(5)
    after[3] = before[3].copy()
    found = drift(before, after, flat)
    a, b = flat(before), flat(after)
    assert found.features == pytest.approx((1 - np.mean([cosine(x, y) for x, y in zip(a, b)])) / 2, abs=1e-12)
    assert found.pixels == pytest.approx(np.mean([np.sqrt(np.mean(((x - y) / 255) ** 2)) for x, y in zip(a, b)]))
    assert found.unchanged == 1 / 5


def test_images_that_did_not_change_have_no_drift():
    same = images(3)
    found = drift(same, [image.copy() for image in same], load_judge().features)
    assert found.features == pytest.approx(0, abs=1e-6)
    assert (found.pixels, found.unchanged) == (0, 1)


def test_one_value_of_one_pixel_is_a_change():
    before = images(1)
    values = np.asarray(before[0]).copy()
    values[0, 0, 0] ^= 1
    assert drift(before, [Image.fromarray(values)], flat).unchanged == 0


def test_dreambooths_scores_are_means_over_pairs():
    drawn, subject = images(4), images(3)
    a, b = flat(drawn), flat(subject)
    assert pres(drawn, subject, flat) == pytest.approx(np.mean([[cosine(x, y) for y in b] for x in a]))
    pairs = [1 - cosine(a[i], a[j]) for i in range(4) for j in range(i)]
    assert div(drawn, flat) == pytest.approx(np.mean(pairs))


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(UserError, match="in pairs, got 0 without the adapter and 0 with"):
        drift([], [], flat)
    with pytest.raises(UserError, match=r"of one size, got \(8, 8\) and \(4, 4\)"):
        drift(images(1), [images(1)[0].resize((4, 4))], flat)
    with pytest.raises(UserError, match="expected two or more, got 1"):
        div(images(1), flat)


@pytest.mark.parametrize(
    ("features", "sentence"),
    [
        (lambda group: 0 * flat(group), "finite and not all zeros"),
        (lambda group: np.nan * flat(group), "finite and not all zeros"),
        (lambda group: flat(group)[:1], r"\[3, width\], got the shape \[1, 192\]"),
        (lambda group: flat(group).ravel(), r"got the shape \[576\]"),
    ],
)
def test_features_without_a_direction_are_refused(features, sentence):
    """They would make a number that says nothing, or none at all."""
    for score in (
        lambda: drift(images(3), images(3), features),
        lambda: pres(images(3), images(3), features),
        lambda: div(images(3), features),
    ):
        with pytest.raises(UserError, match=sentence):
            score()


def test_pres_of_no_images_is_refused():
    for one, other in ((0, 2), (2, 0)):
        with pytest.raises(UserError, match=f"got {one} and {other}"):
            pres(images(one), images(other), flat)


@pytest.mark.parametrize(
    "options", [{"unrelated": -1}, {"neighbours": -1}, {"unrelated": 127}, {"neighbours": 127}, {"class_name": " "}]
)
def test_sets_of_other_prompts_that_cannot_be_are_refused(options):
    with pytest.raises(UserError, match="must be"):
        other_prompts(**{"class_name": "teapot"} | options)


@pytest.mark.parametrize("name", ["Cat", " CAT"])
def test_a_class_in_capitals_is_none_of_the_other_prompts(name):
    found, known = other_prompts(name), other_prompts("cat")
    assert (found["unrelated"], found["neighbours"]) == (known["unrelated"], known["neighbours"])
    assert not any(prompt.startswith("a cat ") for prompt in found["unrelated"] + found["neighbours"])


@pytest.mark.parametrize("name", ["teapot", "octopus", "fox"])
def test_the_sets_of_other_prompts_are_fixed_and_do_not_share_a_subject(name):
    sets = other_prompts(name)
    assert sets == other_prompts(name)
    assert {key: len(set(prompts)) for key, prompts in sets.items()} == {"unrelated": 40, "neighbours": 10, "class": 10}
    assert not set(sets["unrelated"]) & set(sets["neighbours"])
    known = {spoken(each) for each in SEEN_NAMES}
    held = {spoken(each) for each in HELD_OUT_NAMES}
    for prompt in sets["unrelated"] + sets["neighbours"]:
        subject = prompt.partition(" on ")[0].split(" ", 1)[1]
        assert subject in known
        assert subject not in held
    assert all(name in prompt for prompt in sets["class"])


@pytest.mark.parametrize(("name", "like"), [("octopus", "a squid"), ("guitar", "a banjo"), ("helicopter", "a kite")])
def test_neighbours_are_like_the_class(name, like):
    assert like in {prompt.partition(" on ")[0] for prompt in other_prompts(name)["neighbours"]}


def test_an_adapter_that_does_not_say_what_it_shows_has_no_neighbours():
    found = other_prompts([])
    assert len(set(found["unrelated"])) == 40 and found["neighbours"] == found["class"] == []
