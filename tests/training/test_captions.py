"""Where captions come from, which of two is used, and what is said of those that are not."""

import json

import pytest

from atomtune.errors import UserError
from atomtune.training import data

DEFAULT = "a sks teapot"
OWN = "a sks teapot, on a rug"
BOM = b"\xef\xbb\xbf"


def row(text: str, name: str = "0.png") -> bytes:
    return json.dumps({"file_name": name, "text": text}, ensure_ascii=False).encode()


FORMS = {
    "0.txt": OWN.encode(),
    "0.TXT": OWN.encode(),
    "0.caption": OWN.encode(),
    "0.png.txt": OWN.encode(),
    "0.png.Caption": OWN.encode(),
    "metadata.jsonl": row(OWN),
    "metadata.csv": f'file_name,text,more\n0.png,"{OWN}",1\n'.encode(),
}


@pytest.mark.parametrize("lines", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", [b"", BOM])
@pytest.mark.parametrize("name", FORMS)
def test_every_form_of_caption_is_read(images, caplog, name, mark, lines):
    (images / name).write_bytes(mark + FORMS[name].replace(b"\n", lines.encode()) + lines.encode())
    assert list(data.find_examples(images, DEFAULT).values()) == [OWN, DEFAULT, DEFAULT]
    assert not caplog.records


@pytest.mark.parametrize("sign", ["\u2028", "\u2029", "\x85"])
def test_only_a_line_feed_ends_a_line(images, sign):
    text = f"a sks{sign}teapot"
    for name, content in {
        "metadata.jsonl": row(text),
        "metadata.csv": f"file_name,text\n1.png,{text}".encode(),
    }.items():
        (images / name).write_bytes(content)
    assert list(data.find_examples(images, DEFAULT).values()) == [text, text, DEFAULT]


def test_of_two_captions_the_first_form_is_used_and_a_difference_is_told(images, caplog):
    order = ["metadata.jsonl", "metadata.csv", "0.png.txt", "0.png.caption", "0.txt", "0.caption"]
    for name in order:
        content = FORMS.get(name, b"")
        (images / name).write_bytes(content.replace(OWN.encode(), name.encode()) or name.encode())
    for used, *others in (order[i:] for i in range(len(order) - 1)):
        caplog.clear()
        assert next(iter(data.find_examples(images, DEFAULT).values())) == used
        (record,) = caplog.records
        assert f"captions differ for 0.png ({used} is used, not {', '.join(others)})" in record.message
        (images / used).unlink()


def test_equal_captions_are_no_difference(images, caplog):
    (images / "0.txt").write_text(OWN)
    (images / "0.caption").write_text(OWN + "\n")
    assert next(iter(data.find_examples(images, DEFAULT).values())) == OWN
    assert not caplog.records


def test_captions_without_an_image_are_told_once(images, caplog):
    for number in range(7, 14):
        (images / f"{number}.txt").write_text("x")
    (images / "metadata.jsonl").write_bytes(row("x", "gone.png"))
    data.find_examples(images, DEFAULT)
    (record,) = caplog.records
    assert record.message.endswith("no image for the captions 10.txt, 11.txt, 12.txt, 13.txt, 7.txt and 3 more")
    (images / "metadata.jsonl").write_bytes(row("x", "gone.png"))
    for number in range(7, 14):
        (images / f"{number}.txt").unlink()
    data.find_examples(images, DEFAULT)
    assert caplog.records[-1].message.endswith("no image for the captions 'gone.png' in metadata.jsonl")


@pytest.mark.parametrize(
    "content, sentence",
    [
        ("image,text\n0.png,x\n", "has no column 'file_name' in its first line, but 'image', 'text'"),
        ("file_name;text\n0.png;x\n", "has no column 'file_name'"),
        ("", "has no column 'file_name'"),
        ("file_name,text\n0.png,a teapot, on a rug\n", "line 2 of .* is not a caption: expected"),
        ("file_name,text\n0.png\n", "line 2 of .* is not a caption: expected"),
        ('file_name,text\n0.png,"a teapot\n', "is not CSV"),
        ("file_name,text\n0.png,\n", "the caption of .*0.png is empty"),
    ],
)
def test_broken_csv_is_named(images, content, sentence):
    (images / "metadata.csv").write_text(content)
    with pytest.raises(UserError, match=sentence):
        data.find_examples(images, DEFAULT)
