"""Images that a base cannot draw are told before it is trained, and those that it can are not."""

import json
import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.cbook import get_sample_data
from PIL import Image, ImageDraw
from sklearn.datasets import load_sample_image

from atomtune.bases import load_base
from atomtune.shipped import IMAGES
from atomtune.training import data, encoding, fitting
from atomtune.training.fitting import evenness, lost, misfits

TEAPOTS = IMAGES / "teapot"


def photographs() -> list[Image.Image]:
    """Three real ones, and two crops of each."""
    whole = [data.read_image(Path(str(get_sample_data("grace_hopper.jpg", asfileobj=False))))]
    whole += [Image.fromarray(load_sample_image(name)) for name in ("china.jpg", "flower.jpg")]
    return [image.crop(box) for image in whole for box in ((0, 0, *image.size), (0, 0, 300, 300), (150, 100, 500, 420))]


def noise() -> list[Image.Image]:
    """1/f noise, which has the spectrum of photographs."""
    draws = np.random.default_rng(0)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(200), np.fft.fftfreq(200)))
    frequency[0, 0] = 1
    waves = [np.fft.ifft2(np.fft.fft2(draws.normal(size=(200, 200))) / frequency).real for _ in range(9)]
    return [
        Image.fromarray(np.clip(128 + 50 * np.stack(three, -1) / np.std(three), 0, 255).astype(np.uint8))
        for three in zip(waves[::3], waves[1::3], waves[2::3])
    ]


def flat_drawings() -> list[Image.Image]:
    """As people make them: shapes with and without outlines, and lines, on a plain colour."""
    chance, drawn = random.Random(0), []
    for number in range(9):
        image = Image.new("RGB", (400, 400), tuple(chance.randrange(256) for _ in range(3)))
        pen = ImageDraw.Draw(image)
        for _ in range(1 + number % 5):
            x, y, size = chance.randrange(20, 200), chance.randrange(20, 200), chance.randrange(40, 160)
            colour = tuple(chance.randrange(256) for _ in range(3))
            outline = ("black", None)[number % 2]
            getattr(pen, ("ellipse", "rectangle")[number % 2])((x, y, x + size, y + size), colour, outline, 8)
        if number % 3 == 0:
            pen.line([(chance.randrange(400), chance.randrange(400)) for _ in range(5)], "black", 10)
        drawn.append(image)
    return drawn


def emoji() -> list[Image.Image]:
    return [data.read_image(file) for file in sorted(TEAPOTS.glob("*.png"))]


@pytest.fixture(scope="module")
def moji():
    return load_base("moji")


def told(pipe, images: list[Image.Image], base: str = "moji", resolution: int = 64) -> list[str]:
    squares = [data.fitted(image, resolution) for image in images]
    sides = [min(image.size) for image in images]
    return misfits(pipe, base, sides, squares, encoding.encode_images(pipe, squares).mean)


@pytest.mark.parametrize("kind", [photographs, noise])
def test_photographs_on_a_base_of_flat_drawings_are_told_in_one_sentence(moji, kind):
    (sentence,) = told(moji, kind())
    assert sentence.startswith(
        "moji draws flat emoji on plain backgrounds, at 64 pixels, and these look like photographs"
    )
    assert sentence.endswith("for photographs use another base, for example with --config pixart-sigma.")


@pytest.mark.parametrize("kind", [emoji, flat_drawings])
def test_drawings_fit_it(moji, kind):
    assert told(moji, kind()) == []
    assert min(evenness(data.fitted(image, 64)) for image in kind()) > fitting.EVEN


def test_photographs_on_any_other_base_are_what_it_may_well_draw(moji):
    assert told(moji, photographs(), base="some/base") == []  # its autoencoder gives back enough of them


def test_images_that_are_blown_up_are_told_on_every_base(moji):
    small = [image.resize((20, 20)) for image in emoji()]
    (sentence,) = told(moji, [*small, *emoji()], base="some/base")
    assert sentence.startswith("5 of the 10 images are blown up, from 20 to 64 pixels")
    assert told(moji, [image.resize((32, 32)) for image in emoji()], base="some/base") == []


def test_one_small_image_is_told_in_the_singular(moji):
    (sentence,) = told(moji, [emoji()[0].resize((20, 20))], base="some/base")
    assert sentence.startswith("the image is blown up, from 20 to 64 pixels, and looks blurred")


@pytest.mark.parametrize("colour", ["red", "white", "gray"])
def test_an_image_of_one_colour_is_not_lost_although_it_has_no_variance(moji, colour):
    assert told(moji, [Image.new("RGB", (64, 64), colour)], base="some/base") == []


def test_what_the_autoencoder_loses_is_the_error_over_the_variance(moji):
    image = data.fitted(photographs()[0], 64)
    latents = encoding.encode_images(moji, [image]).mean
    x = data.to_tensor(image).double()
    with torch.no_grad():
        y = moji.vae.decode(moji.vae.encode(x[None].float()).latents).sample[0].double().clamp(-1, 1)
    variance = torch.stack([(channel - channel.mean()).square().mean() for channel in x]).mean()
    assert lost(moji, [image], latents) == pytest.approx(float((y - x).square().mean() / variance), rel=1e-3)


def test_an_autoencoder_that_loses_the_images_is_told(moji):
    checkers = Image.fromarray(np.indices((64, 64)).sum(0).astype(np.uint8) % 2 * 255).convert("RGB")
    (sentence,) = told(moji, [checkers], base="some/base")
    assert "the autoencoder of some/base loses" in sentence and "use another base, or a larger" in sentence


def test_a_run_tells_it_before_training_and_goes_on(run, images, tmp_path, caplog):
    """The miniature's random autoencoder gives nothing back."""
    for file in images.iterdir():
        Image.open(file).resize((20, 20)).save(file)
    summary = run()
    sentences = json.loads((tmp_path / "run" / "summary.json").read_text())["misfits"]
    assert [message.removeprefix(f"{images}: ") for message in caplog.messages] == sentences == summary["misfits"]
    assert "blown up, from 20 to 64 pixels" in sentences[0] and "loses 100% of these images" in sentences[1]
    assert math.isfinite(summary["loss"])
