"""Sampling: what a picture starts from, what it carries, and the grid."""

import json

import numpy as np
import pytest
from PIL import Image

from atomtune.errors import UserError
from atomtune.sampling import Drawing, generate, grid, read_settings, save_images
from tests.tiny_pixart import tiny_pixart


@pytest.fixture(scope="module")
def pipe():
    pipe = tiny_pixart()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image, dtype=int)


def test_noise_depends_on_the_seed_alone(pipe):
    """The same picture alone, among others of its prompt, and among other prompts.

    Matrix products of another batch size round otherwise in the last bit of float32, which the sampler's steps and the
    rounding to 8 bits may turn into one level of 255; another noise would differ by tens of levels.
    """
    drawn = {
        d.settings["prompt"] + str(d.settings["seed"]): d for d in generate(pipe, ["a dog", "a cat"], 3, 7, steps=4)
    }
    alone = generate(pipe, "a cat", seed=8, steps=4)[0]
    chunked = generate(pipe, ["a dog", "a cat"], 3, 7, steps=4, batch_size=4)[4]
    for other in (alone, chunked):
        assert abs(pixels(drawn["a cat8"].image) - pixels(other.image)).max() <= 1
        assert drawn["a cat8"].settings == other.settings
    assert abs(pixels(drawn["a cat7"].image) - pixels(alone.image)).max() > 10


def test_defaults_are_the_pipelines_own_and_are_recorded(pipe):
    settings = generate(pipe, "a dog")[0].settings
    assert settings == {"prompt": "a dog", "seed": 0, "steps": 20, "guidance_scale": 4.5}


@pytest.mark.parametrize("wrong", [{"num": 0}, {"steps": -3}, {"batch_size": 0}])
def test_numbers_that_cannot_be_drawn_with(pipe, wrong):
    with pytest.raises(UserError, match=f"{next(iter(wrong))} must be at least 1, got"):
        generate(pipe, "a dog", **wrong)


def test_pictures_carry_their_settings(pipe, tmp_path):
    drawings = generate(pipe, "a dog on the snow", num=2, seed=3, steps=2, guidance_scale=1.0)
    drawings[1].settings["base"] = "PixArt-Σ"
    files = save_images(drawings, tmp_path / "new")
    assert [file.name for file in files] == ["000-a-dog-on-the-snow-seed3.png", "001-a-dog-on-the-snow-seed4.png"]
    assert read_settings(files[1]) == drawings[1].settings
    assert sorted(tmp_path.joinpath("new").iterdir()) == files  # no temporary name is left


def test_settings_of_a_picture_that_is_not_ours(tmp_path):
    Image.new("RGB", (2, 2)).save(tmp_path / "plain.png")
    assert read_settings(tmp_path / "plain.png") == {}


def test_an_image_of_the_user_is_not_replaced(tmp_path):
    drawings = [Drawing(Image.new("RGB", (2, 2), "red"), {"prompt": "a dog"})]
    (file,) = save_images(drawings, tmp_path)
    assert save_images(drawings, tmp_path) == [file]
    for theirs in (Image.new("RGB", (2, 2)).save, lambda path: path.write_text("no image"), lambda path: path.mkdir()):
        file.unlink()
        theirs(file)
        with pytest.raises(UserError, match="is there already and is not an image that atomtune drew"):
            save_images(drawings, tmp_path)


def test_a_full_disk_leaves_nothing_half_written(tmp_path, pipe):
    drawings = generate(pipe, "a dog", steps=1)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="could not write"):
        save_images(drawings, tmp_path / "file")  # a file where the folder should be


def test_grid_puts_each_picture_at_its_place():
    red, blue = Image.new("RGB", (64, 64), "red"), Image.new("RGB", (64, 64), "blue")
    sheet = grid([[red, blue], [blue]], ["base", "a rather long label that has to be wrapped"], ["one", "two"])
    cell, gap = 128, 4
    right, bottom = sheet.width - cell // 2 - gap, sheet.height - cell // 2 - gap
    left, top = right - cell - gap, bottom - cell - gap
    assert [sheet.getpixel(place) for place in [(left, top), (right, top), (left, bottom), (right, bottom)]] == [
        (255, 0, 0),
        (0, 0, 255),
        (0, 0, 255),
        (255, 255, 255),
    ]


def test_settings_are_json(tmp_path, pipe):
    file = save_images(generate(pipe, "a dog", steps=1), tmp_path)[0]
    with Image.open(file) as image:
        assert json.loads(image.info["atomtune"])["prompt"] == "a dog"
