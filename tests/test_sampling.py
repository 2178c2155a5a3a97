"""Sampling: what an image starts from, what it carries, and the grid."""

import json
import re
import sys
import unicodedata

import numpy as np
import pytest
import torch
from diffusers import PixArtSigmaPipeline
from peft import get_peft_model
from PIL import Image
from torch.testing import assert_close

from atomtune import moji
from atomtune.bases import call_options
from atomtune.errors import UserError
from atomtune.sampling import (
    Drawing,
    draw,
    file_name,
    file_words,
    generate,
    grid,
    plan,
    read_settings,
    save_images,
)
from atomtune.tracing import trace
from tests.adapters.tiny import atom_config, wake
from tests.tiny_pixart import tiny_pixart


@pytest.fixture(scope="module")
def pipe():
    pipe = tiny_pixart()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image, dtype=int)


def test_noise_depends_on_the_seed_alone(pipe):
    """The same image alone, among others of its prompt, and among other prompts.

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
    own = {"steps": 20, "guidance_scale": 4.5, "resolution": 64, "dtype": "float32", "device": "cpu"}
    assert settings == {"prompt": "a dog", "seed": 0, **own}


@pytest.mark.parametrize("wrong", [{"num": 0}, {"steps": -3}, {"batch_size": 0}])
def test_numbers_that_cannot_be_drawn_with(pipe, wrong):
    with pytest.raises(UserError, match=f"{next(iter(wrong))} must be at least 1, got"):
        generate(pipe, "a dog", **wrong)


@pytest.mark.parametrize(
    "wrong", [{"resolution": 70}, {"resolution": 0}, {"resolution": -64}, {"seed": 10**20}, {"seed": -1}]
)
def test_what_the_base_cannot_draw_is_refused_before_it_draws(pipe, wrong):
    with pytest.raises(UserError, match=r"resolution must be a multiple of|seed must be a whole number"):
        generate(pipe, "a dog", **wrong)


def test_images_carry_their_settings(pipe, tmp_path):
    drawings = generate(pipe, "a dog on the snow", num=2, seed=3, steps=2, guidance_scale=1.0)
    drawings[1].settings["base"] = "PixArt-Σ"
    files = save_images(drawings, tmp_path / "new")
    names = ["000-a-dog-on-the-snow-seed3-00000000.png", "001-a-dog-on-the-snow-seed4-00000000.png"]
    assert [re.sub(r"[0-9a-f]{8}(?=\.)", "0" * 8, file.name) for file in files] == names
    assert read_settings(files[1]) == drawings[1].settings
    assert sorted(tmp_path.joinpath("new").iterdir()) == files  # no temporary name is left


def test_a_image_is_drawn_again_from_its_settings(pipe, tmp_path):
    drawing = generate(pipe, "a dog", num=2, steps=2, negative_prompt="snow")[1]
    (file,) = save_images([drawing], tmp_path)
    (again,) = draw(pipe, [read_settings(file)])
    assert abs(pixels(again.image) - pixels(drawing.image)).max() <= 1  # another batch size: the last bit


def test_a_image_is_on_disk_as_soon_as_it_is_drawn(pipe, tmp_path):
    def stopped():
        yield from draw(pipe, plan(pipe, "a dog", num=2, steps=1), batch_size=1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_images(stopped(), tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_settings_decide_the_name():
    settings = {"prompt": "a dog", "seed": 0, "scale": 1.0, "steps": 20}
    changes = [{"scale": 0.5}, {"steps": 4}, {"prompt": "a dog!"}, {"negative_prompt": "snow"}, {"seed": 1}]
    names = {file_name(0, settings), *(file_name(0, settings | change) for change in changes)}
    assert len(names) == 1 + len(changes)
    assert file_name(0, dict(reversed(settings.items()))) == file_name(0, settings)


@pytest.mark.parametrize("letter", ["a", "é", "猫", "\U0001d4ea"])
def test_names_fit_every_file_system(letter, tmp_path):
    settings = {"prompt": letter * 300 + " on the snow", "seed": 2**64 - 1}
    (file,) = save_images([Drawing(Image.new("RGB", (2, 2)), settings)], tmp_path)
    assert file.is_file() and letter in file.name
    for form in ("NFC", "NFD"):  # some file systems take letters apart
        assert len(unicodedata.normalize(form, file.name).encode()) < 200


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_letters_that_the_file_system_cannot_write_are_left_out_of_the_name(encoding, monkeypatch):
    monkeypatch.setattr(sys, "getfilesystemencoding", lambda: encoding)
    assert file_words("猫 a cat").encode(encoding) == b"-a-cat"


def test_a_negative_prompt_is_what_the_pipeline_makes_of_it(pipe):
    (drawing,) = generate(pipe, "a dog", seed=3, steps=2, negative_prompt="snow")
    options = call_options(pipe) | {"generator": torch.Generator().manual_seed(3), "num_inference_steps": 2}
    assert (pixels(pipe("a dog", negative_prompt="snow", **options).images[0]) == pixels(drawing.image)).all()
    assert (pixels(generate(pipe, "a dog", seed=3, steps=2)[0].image) != pixels(drawing.image)).any()
    assert drawing.settings["negative_prompt"] == "snow"
    plain, named = (
        generate(moji.random_pipeline(), "a dog", steps=1, negative_prompt=words)[0].image for words in ("", "a cat")
    )
    assert (pixels(plain) != pixels(named)).any()


def test_a_negative_prompt_that_would_do_nothing_is_refused(pipe):
    with pytest.raises(UserError, match="guidance_scale is 1, which means none"):
        generate(pipe, "a dog", guidance_scale=1.0, negative_prompt="snow")

    class Distilled(PixArtSigmaPipeline):
        def __call__(self, prompt=None, num_inference_steps=1, guidance_scale=4.0):
            raise AssertionError("nothing is drawn")

    with pytest.raises(UserError, match="Distilled takes no negative prompt"):
        generate(Distilled(**pipe.components), "a dog", negative_prompt="snow")


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (file,) = save_images([Drawing(Image.new("RGB", (2, 2)), {"prompt": "x"})], "~/out")
    assert file.parent == tmp_path / "out" and read_settings(f"~/out/{file.name}") == {"prompt": "x"}


def test_settings_of_a_image_that_is_not_ours(tmp_path):
    Image.new("RGB", (2, 2)).save(tmp_path / "plain.png")
    assert read_settings(tmp_path / "plain.png") == {}


def test_an_image_of_the_user_is_not_replaced(tmp_path):
    drawings = [Drawing(Image.new("RGB", (2, 2), "red"), {"prompt": "a dog"})]
    (file,) = save_images(drawings, tmp_path)
    assert save_images(drawings, tmp_path) == [file]
    for theirs in (Image.new("RGB", (2, 2)).save, lambda path: path.write_text("no image"), lambda path: path.mkdir()):
        file.unlink()
        theirs(file)
        with pytest.raises(UserError, match="exists already and is not an image that atomtune drew"):
            save_images(drawings, tmp_path)


def test_a_full_disk_leaves_nothing_half_written(tmp_path, pipe):
    drawings = generate(pipe, "a dog", steps=1)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="could not write"):
        save_images(drawings, tmp_path / "file")  # a file where the folder should be


def test_grid_puts_each_image_at_its_place():
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


@pytest.mark.parametrize("guidance_scale", [0.0, 1.0, 4.5])
def test_what_is_traced_of_two_prompts_is_what_is_traced_of_each(guidance_scale):
    """Two images of one noise are no halves of guidance, if there is none. (Another batch size rounds otherwise.)"""
    pipe = tiny_pixart()
    pipe.transformer = wake(get_peft_model(pipe.transformer, atom_config()))
    prompts, options = ["a dog", "a cat on the snow"], {"steps": 3, "guidance_scale": guidance_scale}
    with trace(pipe) as both:
        generate(pipe, prompts, **options)
    with trace(pipe) as one_by_one:
        for prompt in prompts:
            generate(pipe, prompt, **options)
    for together, apart in zip(both.layers, one_by_one.layers):
        assert len(together.samples) == len(apart.samples) == 2
        assert together.total(unguided=True).tokens == apart.total(unguided=True).tokens
        assert (together.total(unguided=True).tokens == 0) == (guidance_scale <= 1)
        assert_close(together.mean_energy_by_sample, apart.mean_energy_by_sample, atol=1e-5, rtol=1e-4)
