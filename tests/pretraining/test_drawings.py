"""SVG out of an icon set, pictures out of SVG, without the network."""

import pytest

pytest.importorskip("resvg_py", reason="pretraining renders with resvg-py, of the extra `dev`")

from pretraining.drawings import render, svg

ICONS = {
    "width": 32,
    "height": 32,
    "icons": {"square": {"body": '<path fill="#ff0000" d="M0 0h16v32H0z"/>'}},
    "aliases": {"box": {"parent": "square"}, "turned": {"parent": "square", "rotate": 1}},
}


def test_a_drawing_is_rendered_with_its_transparency():
    document = svg(ICONS, "square")
    assert document is not None
    picture = render(document, 20)
    assert picture.size == (20, 20)
    assert picture.getpixel((2, 10)) == (255, 0, 0, 255)
    assert picture.getpixel((17, 10))[3] == 0  # pyright: ignore[reportIndexIssue, reportOptionalSubscript]


def test_aliases_are_followed_and_turned_ones_left_out():
    assert svg(ICONS, "box") == svg(ICONS, "square")
    assert svg(ICONS, "turned") is None
    assert svg(ICONS, "missing") is None
