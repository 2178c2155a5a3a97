"""What pixels say exactly about a scene."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from atomtune.metrics import background_colour, place_and_size
from atomtune.metrics.pixels import CLEAR, clear_backgrounds
from atomtune.moji.scenes import BACKGROUNDS, PLACES, SIZES, Scene, compose
from atomtune.shipped import IMAGES


def disc(colour: tuple[int, int, int] = (0, 130, 130)) -> Image.Image:
    drawing = Image.new("RGBA", (58, 58))
    ImageDraw.Draw(drawing).ellipse((0, 0, 57, 57), fill=(*colour, 255))
    return drawing


@pytest.mark.parametrize("background", BACKGROUNDS)
@pytest.mark.parametrize("size", SIZES)
def test_every_scene_is_read_exactly(background, size):
    for place in PLACES if size != "large" else ["center"]:
        picture = compose(disc(), Scene("disc", "none", background, size, place))
        assert background_colour(picture) == background
        assert place_and_size(picture) == (place, size)


@given(background=st.sampled_from(list(BACKGROUNDS)), seed=st.integers(0, 2**16))
def test_a_little_noise_does_not_matter(background, seed):
    pixels = np.asarray(compose(disc(), Scene("disc", "none", background)), dtype=float)
    noisy = (pixels + np.random.default_rng(seed).normal(0, 6, pixels.shape)).clip(0, 255).astype(np.uint8)
    assert background_colour(noisy) == background
    assert place_and_size(noisy) == ("center", "normal")


def test_no_plain_background_has_no_name():
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    assert background_colour(noise) is None
    assert place_and_size(noise) is None


def test_a_colour_that_is_none_of_the_ten():
    brown = Image.new("RGB", (64, 64), (90, 50, 10))
    assert background_colour(brown) is None


def test_nothing_is_nowhere():
    assert place_and_size(Image.new("RGB", (64, 64), BACKGROUNDS["blue"])) is None


def test_other_sizes_and_modes_are_converted():
    picture = compose(disc(), Scene("disc", "none", "blue")).resize((200, 200)).convert("RGBA")
    assert background_colour(picture) == "blue"
    assert place_and_size(picture) == ("center", "normal")


def shape(colour: str, background: str, size: int = 30) -> np.ndarray:
    """A square in one of the ten colours."""
    image = np.full((64, 64, 3), BACKGROUNDS[background], np.uint8)
    image[10 : 10 + size, 20 : 20 + size] = BACKGROUNDS[colour]
    return image


@pytest.mark.parametrize("colour", BACKGROUNDS)
def test_a_subject_is_never_asked_for_on_its_own_colour(colour):
    others = [name for name in BACKGROUNDS if name != colour]
    found = clear_backgrounds([shape(colour, others[0]), shape(colour, others[1], 12)])
    assert len(found) >= 3 and len({*found}) == len(found) and colour not in found
    distance = [np.linalg.norm(np.subtract(BACKGROUNDS[colour], BACKGROUNDS[name])) for name in found]
    assert distance == sorted(distance, reverse=True) and min(distance) >= CLEAR


def test_every_colour_of_which_a_fifth_of_the_subject_is_counts_as_its_own():
    two = shape("red", "green")
    two[10:20, 20:50] = BACKGROUNDS["white"]
    assert {"red", "white"}.isdisjoint(clear_backgrounds([two]))


def test_the_demos_teapot_is_asked_for_where_it_is_seen():
    teapots = sorted((IMAGES / "teapot").glob("*.png"))
    found = clear_backgrounds([Image.open(file) for file in teapots])
    assert found[:3] == ["white", "yellow", "orange"]
    assert {"blue", "purple", "gray"}.isdisjoint(found)


@pytest.mark.parametrize("colour", ["white", "blue"])
def test_backgrounds_of_blank_images_and_of_photographs_are_found_too(colour):
    blank = np.full((64, 64, 3), BACKGROUNDS[colour], np.uint8)
    assert colour not in clear_backgrounds([blank])
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    assert len(clear_backgrounds([noise])) >= 3
