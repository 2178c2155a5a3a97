"""Images as people have them, and what cannot be read."""

import json
import os
import struct
import subprocess
import sys
import zlib
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from atomtune.errors import UserError
from atomtune.sizes import Size
from atomtune.training import data

CAPTION = "a sks teapot"


def png(depth: int, colour: int, pixels: bytes, width: int, transparent: bytes = b"") -> bytes:
    """A PNG of one row, with any bit depth, colour type and transparent colour, which Pillow itself does not write."""
    chunks = [b"IHDR" + struct.pack(">IIBBBBB", width, 1, depth, colour, 0, 0, 0)]
    chunks += [b"tRNS" + transparent] if transparent else []
    chunks += [b"IDAT" + zlib.compress(b"\0" + pixels), b"IEND"]
    parts = [struct.pack(">I", len(each) - 4) + each + struct.pack(">I", zlib.crc32(each)) for each in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds no pixels."""
    chunks = [b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0), b"IDAT"]
    lengths = [struct.pack(">I", len(chunk) - 4) for chunk in chunks]
    checks = [struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(a + b + c for a, b, c in zip(lengths, chunks, checks))


@given(width=st.integers(1, 90), height=st.integers(1, 90), resolution=st.sampled_from([8, 32, 64]))
def test_any_size_becomes_a_square_of_rgb(width, height, resolution):
    image = data.fitted(Image.new("RGB", (width, height), (255, 0, 128)), resolution)
    tensor = data.to_tensor(image)
    assert tensor.shape == (3, resolution, resolution)
    torch.testing.assert_close(tensor[:, 0, 0], torch.tensor([1.0, -1.0, 128 / 127.5 - 1]))


def test_the_crop_is_central_and_keeps_proportions():
    image = np.zeros((40, 80, 3), np.uint8)
    image[:, 20:60] = 255  # a white square in the middle of a black strip
    assert np.asarray(data.fitted(Image.fromarray(image), 40)).min() == 255


def test_exif_rotation_is_undone(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: rotate a quarter turn clockwise
    Image.new("RGB", (30, 20)).save(tmp_path / "a.jpg", exif=exif)
    assert data.read_image(tmp_path / "a.jpg").size == (20, 30)


def test_transparency_is_composed_over_white(tmp_path):
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(tmp_path / "a.png")
    assert data.read_image(tmp_path / "a.png").getpixel((0, 0)) == (255, 255, 255)
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.save(tmp_path / "b.png", transparency=0)
    assert data.read_image(tmp_path / "b.png").getpixel((0, 0)) == (40, 50, 60)
    palette.save(tmp_path / "c.png", transparency=1)
    assert data.read_image(tmp_path / "c.png").getpixel((0, 0)) == (255, 255, 255)


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
    image = data.read_image(file)
    assert (image.mode, image.getpixel((3, 3))) == ("RGB", expected)


def read(content: bytes, tmp_path, name: str = "a.png") -> np.ndarray:
    (tmp_path / name).write_bytes(content)
    return np.asarray(data.read_image(tmp_path / name)).astype(int)


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_grey_of_any_depth_is_scaled_by_its_range_and_its_transparent_colour_is_white(tmp_path, depth):
    top = 2**depth - 1
    values = np.linspace(0, top, 8).round().astype(np.uint16)
    bits = "".join(f"{value:0{depth}b}" for value in values)
    pixels = int(bits, 2).to_bytes(len(bits) // 8, "big")
    plain = read(png(depth, 0, pixels, 8), tmp_path)[0, :, 0]
    np.testing.assert_array_equal(plain, np.rint(values / top * 255))
    key = values[2]
    found = read(png(depth, 0, pixels, 8, struct.pack(">H", key)), tmp_path)[0, :, 0]
    np.testing.assert_array_equal(found, np.where(values == key, 255, plain))


def test_colours_and_opacity_of_16_bits_are_brought_to_8(tmp_path):
    colours = np.array([[300, 300, 300], [40000, 300, 5], [65535, 0, 32768]], ">u2")
    found = read(png(16, 2, colours.tobytes(), 3), tmp_path)[0]
    assert abs(found - colours / 65535 * 255).max() <= 1  # Pillow takes the high byte
    keyed = read(png(16, 2, colours.tobytes(), 3, colours[0].tobytes()), tmp_path)[0]
    np.testing.assert_array_equal(keyed, [[255, 255, 255], *found[1:]])
    opacity = np.array([[0, 65535], [0, 0], [0, 32768]], ">u2")
    found = read(png(16, 4, opacity.tobytes(), 3), tmp_path)[0, :, 0]
    assert abs(found - 255 * (1 - opacity[:, 1] / 65535)).max() <= 1


@given(
    st.sampled_from([("F", 1), ("I", 255), ("I", 65535), ("I;16", 65535)]),
    st.lists(st.floats(0, 1, width=32), min_size=1, max_size=9),
)
def test_numbers_are_scaled_by_their_range(kind, shares):
    mode, top = kind
    values = np.array([[*shares, 1.0]]) * top
    values = values.astype({"F": np.float32, "I": np.int32, "I;16": np.uint16}[mode])
    image = Image.fromarray(values)
    assert image.mode == mode
    expected = np.rint(values.astype(np.float64) / top * 255)
    np.testing.assert_array_equal(np.asarray(data.to_rgb(image))[..., 0], expected)


@pytest.mark.parametrize(
    "values, kind", [([0.5, 1.5], "f4"), ([-0.1, 1], "f4"), ([np.nan, 1], "f4"), ([-1, 3], "i4"), ([0, 70000], "i4")]
)
def test_numbers_whose_range_cannot_be_told_are_refused_by_name(images, values, kind):
    Image.fromarray(np.array([values], kind)).save(images / "3.tif")
    with pytest.raises(UserError, match=r"3\.tif holds numbers from .* \(mode [FI]\): scale them to 0"):
        data.find_examples(images, CAPTION)


@pytest.mark.parametrize("name", ["3.jfif", "3.jpe", "3.avif", "3.jp2", "3.tga", "3.WEBP", "3.heic", "3.HEIF"])
def test_every_format_that_can_be_opened_is_read(images, caplog, name):
    data.with_heif()
    kind = Image.registered_extensions()[f".{name.split('.')[1].lower()}"]
    Image.new("RGB", (64, 64), "red").save(images / name, kind)
    found = data.find_examples(images, CAPTION)
    assert images / name in found and not caplog.records
    read = np.asarray(data.read_image(images / name))
    np.testing.assert_allclose(read[32, 32], (255, 0, 0), atol=8)  # of 255: some of these formats lose colour


def test_heif_without_its_library_says_how_to_install_it(images, monkeypatch):
    monkeypatch.setattr(data, "with_heif", lambda: False)
    (images / "3.heic").write_bytes(b"")
    with pytest.raises(UserError, match=r"3\.heic needs pillow-heif to be read: install it with pip install"):
        data.find_examples(images, CAPTION)


def test_of_several_frames_the_first_is_used_and_that_is_told(images, caplog):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    for name in ("a.gif", "b.webp", "c.png", "d.tif"):
        options: dict[str, Any] = {"lossless": True} if name == "b.webp" else {}
        frames[0].save(images / name, save_all=True, append_images=frames[1:], **options)
        assert data.read_image(images / name).getpixel((0, 0)) == (255, 0, 0)
    data.find_examples(images, CAPTION)
    (record,) = caplog.records
    assert record.message.endswith("only the first frame is used of a.gif, b.webp, c.png, d.tif")


def test_what_is_passed_over_is_told_a_line_for_each_kind(images, caplog):
    for name in ("more", "none"):
        (images / name).mkdir()
    Image.new("RGB", (8, 8)).save(images / "more" / "a.png")
    for name in ("a.cr2", "b.mp4", ".DS_Store", "orphan.txt"):
        (images / name).write_bytes(b"x")
    assert len(data.find_examples(images, CAPTION)) == 3
    told = [record.message.removeprefix(f"{images}: ") for record in caplog.records]
    assert told == [
        "there is no image for the captions orphan.txt",
        "images in subfolders are not read: more",
        "by their names, neither images nor captions: a.cr2, b.mp4",
    ]
    caplog.clear()
    data.find_examples(images / "0.png", CAPTION)  # of one image the folder says nothing
    assert not caplog.records


def test_links_to_nothing_are_refused(images):
    (images / "3.png").symlink_to(images / "gone.png")
    with pytest.raises(UserError, match=r"3\.png is a link to a file that is not there: replace or remove it"):
        data.find_examples(images, CAPTION)


def test_captions_from_metadata_then_text_then_the_default(images, caplog):
    rows = [{"file_name": "0.png", "text": "a sks teapot on a table"}]
    (images / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    (images / "0.txt").write_text("not this one")
    (images / "1.txt").write_text("a sks teapot, ça va\n", encoding="utf-8")
    (images / ".hidden.png").write_bytes(b"")
    (images / "notes.md").write_text("not an image")
    captions = data.find_examples(images, CAPTION)
    assert "captions differ for 0.png (metadata.jsonl is used, not 0.txt)" in caplog.text
    assert "by their names, neither images nor captions: notes.md" in caplog.text
    assert [file.name for file in captions] == ["0.png", "1.png", "2.png"]
    assert list(captions.values()) == ["a sks teapot on a table", "a sks teapot, ça va", CAPTION]


def test_one_image_is_enough(images):
    assert list(data.find_examples(images / "1.png", CAPTION).values()) == [CAPTION]


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"there are no images in .* expected files ending in \.png"):
        data.find_examples(tmp_path, CAPTION)
    with pytest.raises(UserError, match="there is no folder"):
        data.find_examples(tmp_path / "nowhere", CAPTION)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "3.png is empty: replace or remove it."),
        (b"not an image", "3.png is not an image that can be read: replace or remove it."),
        (png_header(8, 8), "3.png is not an image that can be read: replace or remove it."),
        (png_header(30_000, 30_000), "3.png is too large"),
        (png_header(10_000, 10_000), "3.png is too large"),
    ],
)
def test_images_that_cannot_be_read_are_named(images, content, sentence):
    (images / "3.png").write_bytes(content)
    with pytest.raises(UserError, match=sentence.replace(".", r"\.")):
        data.find_examples(images, CAPTION)


def test_a_truncated_photograph_is_named(images, tmp_path):
    random = np.random.default_rng(0)
    Image.fromarray(random.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(tmp_path / "a.jpg")
    (images / "3.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:900])
    with pytest.raises(UserError, match=r"3\.jpg is not an image that can be read"):
        data.find_examples(images, CAPTION)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("{", "line 1 of .* is not a caption: expected"),
        ('["0.png"]', "line 1 of .* is not a caption: expected"),
        ('{"file_name": "0.png"}', "line 1 of .* is not a caption: expected"),
        ('{"file_name": "0.png", "text": 3}', "line 1 of .* is not a caption: expected"),
        ('{"file_name": "0.png", "text": " "}', "the caption of .*0.png is empty"),
        ('{"file_name": "0.png", "text": "a <v> teapot"}', "'<v>' in 'a <v> teapot' would be lost"),
        ("\xff", "the captions in .*metadata.jsonl could not be read"),
    ],
)
def test_broken_captions_are_named(images, line, sentence):
    (images / "metadata.jsonl").write_text(line, encoding="latin-1")
    with pytest.raises(UserError, match=sentence):
        data.find_examples(images, CAPTION)


def test_the_digest_tells_images_alpha_and_captions_apart():
    black, white = (data.Picture(Image.new("RGB", (8, 8), colour), (8, 8)) for colour in ("black", "white"))
    half = data.Picture(black.image, black.original, Image.new("L", (8, 8), 127))
    pairs = [(black, "a"), (white, "a"), (black, "b"), (half, "a")]
    digests = {data.digest([picture], [caption]) for picture, caption in pairs}
    assert len(digests) == 4
    assert data.digest([black], ["a"]) in digests


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "16 bits"])
def test_a_picture_has_the_colours_below_its_alpha(tmp_path, mode):
    """Left half opaque, right half transparent; as a picture without alpha the right half is white."""
    file, colour = tmp_path / "a.png", Image.new("L", (32, 16), 60)
    alpha = Image.new("L", (32, 16), 255)
    alpha.paste(0, (16, 0, 32, 16))
    if mode == "RGBA":
        Image.merge("RGBA", [colour, colour, colour, alpha]).save(file)
    elif mode == "LA":
        Image.merge("LA", [colour, alpha]).save(file)
    elif mode == "P":
        palette = alpha.point(lambda value: 1 if value else 0).convert("P")
        palette.putpalette([60, 60, 60, 60, 60, 60])
        palette.save(file, transparency=0)
    else:
        values = np.where(np.asarray(alpha) > 0, 60 * 257, 5).astype(np.uint16)
        Image.fromarray(values).save(file, transparency=5)
    picture = data.read_picture(file, [Size(8, 8)], alpha_mask=True)  # the centre of it
    assert picture.original == (32, 16) and picture.alpha is not None
    assert np.array(picture.alpha)[:, :4].min() == 255 and np.array(picture.alpha)[:, 4:].max() == 0
    assert np.array(data.read_picture(file, [Size(8, 8)]).image)[4, 7].tolist() == [255] * 3
    beneath = 255 if mode == "16 bits" else 60  # a grey value that stands for transparency is no colour
    assert np.array(picture.image)[4, 7].tolist() == [beneath] * 3
    assert data.read_picture(file, [Size(8, 8)]).alpha is None
    assert [np.array(picture.visible)[4, x, 0] for x in (0, 7)] == [60, 255]
    flipped = picture.mirrored()
    assert flipped.alpha is not None and np.array(flipped.alpha)[:, 4:].min() == 255


def test_a_picture_without_anything_visible_is_refused(tmp_path):
    image = Image.new("RGBA", (64, 16), (10, 20, 30, 0))
    image.putpixel((0, 0), (10, 20, 30, 255))  # which the crop removes
    image.save(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"a\.png is transparent everywhere, at 16 pixels"):
        data.read_picture(tmp_path / "a.png", [Size.of(16)], alpha_mask=True)


def test_a_folder_that_may_not_be_read_is_one_sentence_and_others_beside_the_images_do_not_matter(tmp_path):
    """In a process without root's right to read everything."""
    folder = tmp_path / "photos"
    (folder / "lost+found").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(folder / "a.png")
    script = tmp_path / "find.py"
    script.write_text(
        "import sys\nfrom pathlib import Path\nfrom atomtune.training.data import image_files\n"
        "print([file.name for file in image_files(Path(sys.argv[1]))])\n"
    )
    command = [sys.executable, str(script), str(folder)]
    if os.geteuid() == 0:
        command = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", *command]

    def found():
        return subprocess.run(command, capture_output=True, text=True)

    locked = folder / "lost+found"
    locked.chmod(0)
    assert found().stdout == "['a.png']\n"
    locked.rename(folder / "1_sks dog")
    assert f"the folder '{folder / '1_sks dog'}' cannot be read by this user" in found().stderr
    folder.chmod(0)
    try:
        assert f"the folder '{folder}' cannot be read by this user" in found().stderr
    finally:
        folder.chmod(0o700)
