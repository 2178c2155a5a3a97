"""The page, without a browser: everything is in it, nothing is fetched, it fits, and words are escaped."""

import re

from atomtune.analysis import report
from atomtune.analysis.report import render
from tests.analysis.invented import invented


def test_the_page_holds_everything_and_fetches_nothing():
    page = render(invented(), {"seed": 0})
    for text in ("L0[3]", "blue background", "Every atom", "seed: 0", "Turn the density", "Overlap with other"):
        assert text in page
    assert not re.findall(r'(?:src|href)="(?!data:|#)', page)
    assert "http" not in re.sub(r"data:[^\"]+", "", page)
    images = re.findall(r"<img[^>]*>", page)
    assert len(images) > 50
    assert all(re.search(r'alt="[^"]+"', image) for image in images)


def test_words_are_escaped():
    found = invented()
    found.prompts[0] = '</script><script>alert("1")</script>'
    found.subject = "<v> dog"
    page = render(found)
    assert "<script>alert" not in page
    assert "&lt;v&gt; dog" in page


def test_sections_without_content_are_left_out():
    found = invented()
    found.densities, found.overlap = [], None
    page = render(found)
    assert "Turn the density" not in page
    assert "Overlap with" not in page


def test_large_pictures_are_made_small_until_the_page_fits(tmp_path, monkeypatch):
    found = invented(size=200)
    found.views = found.views[:3]
    large = len(render(found).encode())
    monkeypatch.setattr(report, "LARGEST", large - 1)
    size = report.write_report(found, tmp_path / "page.html")
    assert size == (tmp_path / "page.html").stat().st_size < large
