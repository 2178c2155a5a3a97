"""Scenes show what they say."""

import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from atomtune.moji.scenes import (
    BACKGROUNDS,
    MARGIN,
    PLACES,
    RESOLUTION,
    SIZES,
    STYLES,
    Scene,
    caption,
    compose,
    sample_scene,
)

DOT = Image.new("RGBA", (58, 58), (1, 2, 3, 255))


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("size", SIZES)
def test_a_drawing_is_where_and_as_large_as_the_scene_says(size, place):
    pixels = np.asarray(compose(DOT, Scene("dog", "noto", "green", size, place)))
    assert pixels.shape == (RESOLUTION, RESOLUTION, 3)
    rows, columns = np.nonzero((pixels == (1, 2, 3)).all(-1))
    assert np.ptp(rows) + 1 == np.ptp(columns) + 1 == SIZES[size]
    slack = (RESOLUTION - SIZES[size]) // 2
    dx, dy = PLACES[place]
    assert (columns.min(), rows.min()) == (slack + dx * (slack - MARGIN), slack + dy * (slack - MARGIN))
    assert tuple(pixels[0, 0]) == BACKGROUNDS["green"]


@given(st.integers(0, 2**32))
def test_sampled_scenes_are_never_kept_out(seed):
    scene = sample_scene("dog", ["noto", "retro"], random.Random(seed))
    assert not scene.kept_out
    assert scene.style in ("noto", "retro")


def test_a_tenth_of_all_compositions_is_kept_out():
    scenes = [
        Scene(name, style, b, "normal", p)
        for name in ("dog", "car")
        for style in STYLES
        for b in BACKGROUNDS
        for p in PLACES
    ]
    assert 0.06 < sum(scene.kept_out for scene in scenes) / len(scenes) < 0.14


def test_most_scenes_are_normal_and_centered():
    rng = random.Random(0)
    counts = Counter((s.size, s.place) for s in (sample_scene("dog", list(STYLES), rng) for _ in range(2000)))
    assert counts[("normal", "center")] > 1200


def test_a_full_caption_says_everything_but_the_usual():
    words = caption(Scene("ear-of-corn", "emojione", "orange", "small", "left"))
    assert words == "an emojione drawing of a small corn on the left on an orange background"
    assert caption(Scene("dog", "noto", "red")) == "a noto drawing of a dog on a red background"


@given(st.integers(0, 2**32))
def test_varied_captions_say_the_name_and_nothing_untrue(seed):
    scene = Scene("ear-of-corn", "twemoji", "gray", "large", "top")
    words = caption(scene, random.Random(seed)).replace(",", "").split()
    assert "corn" in words
    false = {*STYLES, *BACKGROUNDS, *SIZES, *PLACES} - {"twemoji", "gray", "large", "top"}
    assert not false & set(words)
