"""Pictures as people have them, and what cannot be read."""

import json
import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from atomtune.errors import UserError
from atomtune.training import data

CAPTION = "a sks teapot"


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds no pixels."""
    chunks = [b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0), b"IDAT"]
    lengths = [struct.pack(">I", len(chunk) - 4) for chunk in chunks]
    checks = [struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(a + b + c for a, b, c in zip(lengths, chunks, checks))


@given(width=st.integers(1, 90), height=st.integers(1, 90), resolution=st.sampled_from([8, 32, 64]))
def test_any_size_becomes_a_square_of_rgb(width, height, resolution):
    picture = data.square(Image.new("RGB", (width, height), (255, 0, 128)), resolution)
    tensor = data.to_tensor(picture)
    assert tensor.shape == (3, resolution, resolution)
    torch.testing.assert_close(tensor[:, 0, 0], torch.tensor([1.0, -1.0, 128 / 127.5 - 1]))


def test_the_crop_is_central_and_keeps_proportions():
    picture = np.zeros((40, 80, 3), np.uint8)
    picture[:, 20:60] = 255  # a white square in the middle of a black strip
    assert np.asarray(data.square(Image.fromarray(picture), 40)).min() == 255


def test_exif_rotation_is_undone(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: rotate a quarter turn clockwise
    Image.new("RGB", (30, 20)).save(tmp_path / "a.jpg", exif=exif)
    assert data.read_picture(tmp_path / "a.jpg").size == (20, 30)


def test_transparency_is_composed_over_white(tmp_path):
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(tmp_path / "a.png")
    assert data.read_picture(tmp_path / "a.png").getpixel((0, 0)) == (255, 255, 255)
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.save(tmp_path / "b.png", transparency=0)
    assert data.read_picture(tmp_path / "b.png").getpixel((0, 0)) == (40, 50, 60)
    palette.save(tmp_path / "c.png", transparency=1)
    assert data.read_picture(tmp_path / "c.png").getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("L", 100, (100, 100, 100)),
        ("LA", (100, 255), (100, 100, 100)),
        ("1", 1, (255, 255, 255)),
        ("I;16", 257 * 100, (100, 100, 100)),
        ("CMYK", (0, 255, 255, 0), (255, 0, 0)),
        ("RGB", (1, 2, 3), (1, 2, 3)),
    ],
)
def test_every_mode_becomes_rgb(tmp_path, mode, colour, expected):
    file = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    Image.new(mode, (8, 8), colour).save(file)
    picture = data.read_picture(file)
    assert (picture.mode, picture.getpixel((3, 3))) == ("RGB", expected)


def test_captions_from_metadata_then_text_then_the_default(pictures):
    rows = [{"file_name": "0.png", "text": "a sks teapot on a table"}]
    (pictures / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    (pictures / "0.txt").write_text("not this one")
    (pictures / "1.txt").write_text("a sks teapot, ça va\n", encoding="utf-8")
    (pictures / ".hidden.png").write_bytes(b"")
    (pictures / "notes.md").write_text("not a picture")
    captions = data.find_examples(pictures, CAPTION)
    assert [file.name for file in captions] == ["0.png", "1.png", "2.png"]
    assert list(captions.values()) == ["a sks teapot on a table", "a sks teapot, ça va", CAPTION]


def test_one_picture_is_enough(pictures):
    assert list(data.find_examples(pictures / "1.png", CAPTION).values()) == [CAPTION]


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"there are no pictures in .* expected files ending in \.png"):
        data.find_examples(tmp_path, CAPTION)
    with pytest.raises(UserError, match="there is no folder"):
        data.find_examples(tmp_path / "nowhere", CAPTION)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "3.png is empty: replace or remove it."),
        (b"not a picture", "3.png is not a picture that can be read: replace or remove it."),
        (png_header(8, 8), "3.png is not a picture that can be read: replace or remove it."),
        (png_header(30_000, 30_000), "3.png is too large for a photograph"),
        (png_header(10_000, 10_000), "3.png is too large for a photograph"),
    ],
)
def test_pictures_that_cannot_be_read_are_named(pictures, content, sentence):
    (pictures / "3.png").write_bytes(content)
    with pytest.raises(UserError, match=sentence.replace(".", r"\.")):
        data.find_examples(pictures, CAPTION)


def test_a_truncated_photograph_is_named(pictures, tmp_path):
    random = np.random.default_rng(0)
    Image.fromarray(random.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(tmp_path / "a.jpg")
    (pictures / "3.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:900])
    with pytest.raises(UserError, match=r"3\.jpg is not a picture that can be read"):
        data.find_examples(pictures, CAPTION)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("{", "line 1 of .* is not a caption: expected"),
        ('["0.png"]', "line 1 of .* is not a caption: expected"),
        ('{"file_name": "0.png"}', "line 1 of .* is not a caption: expected"),
        ('{"file_name": "0.png", "text": 3}', "line 1 of .* is not a caption: expected"),
        ('{"file_name": "9.png", "text": "a"}', "line 1 of .* names '9.png', which is not there"),
        ('{"file_name": "0.png", "text": " "}', "the caption of .*0.png is empty"),
        ('{"file_name": "0.png", "text": "a <v> teapot"}', "'<v>' in 'a <v> teapot' would be lost"),
        ("\xff", "the captions in .*metadata.jsonl could not be read"),
    ],
)
def test_broken_captions_are_named(pictures, line, sentence):
    (pictures / "metadata.jsonl").write_text(line, encoding="latin-1")
    with pytest.raises(UserError, match=sentence):
        data.find_examples(pictures, CAPTION)


def test_the_digest_tells_pictures_and_captions_apart():
    black, white = Image.new("RGB", (8, 8)), Image.new("RGB", (8, 8), "white")
    digests = {data.digest([black], ["a"]), data.digest([white], ["a"]), data.digest([black], ["b"])}
    assert len(digests) == 3
    assert data.digest([black], ["a"]) in digests
