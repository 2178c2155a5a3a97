"""The page, without a browser: everything is in it, nothing is fetched, it fits, and words are escaped."""

import json
import re

import pytest

from atomtune.analysis import report
from atomtune.analysis.learnt import Learnt
from atomtune.analysis.report import read_names, render, write_report
from atomtune.errors import UserError
from atomtune.metrics import Drift
from tests.analysis.invented import invented


def test_the_page_holds_everything_and_fetches_nothing():
    page = render(invented(), {"seed": 0})
    for text in ("L0[3]", "blue background", "Every atom", "seed: 0", 'id="density"', "Overlap with other"):
        assert text in page
    assert not re.findall(r'(?:src|href)="(?!data:|#)', page)
    assert "http" not in re.sub(r"data:[^\"]+", "", page)
    images = re.findall(r"<img[^>]*>", page)
    assert len(images) > 50
    assert all(re.search(r'alt="[^"]+"', image) for image in images)


def test_the_top_says_whether_the_subject_was_learnt():
    found = invented()
    assert "This subject was learnt." in render(found)
    found.learnt.numbers["fidelity"] = 0.6
    assert "This subject was learnt in part." in render(found)
    found.learnt.numbers["fidelity"] = 0.1
    page = render(found)
    assert page.index("This subject was hardly learnt.") < page.index('class="facts"')
    found.learnt.numbers = {}
    assert "verdict" not in render(found).partition("<body>")[2]


def test_the_training_images_are_beside_what_is_drawn_or_it_is_said_why_not():
    found = invented()
    assert "Training image: a sks teapot in a kitchen" in render(found)
    found.learnt = Learnt(missing="No run is beside it.")
    assert "No run is beside it." in render(found)


def test_a_pair_of_images_shows_a_change_or_there_is_none():
    page = render(invented())
    assert page.count("Nothing that can be seen in images of the prompts, even turned up 20 times") == 8  # of 24 cards
    assert "Near duplicates of it: L0[6]." in page


def test_red_and_blue_mean_one_thing_and_the_legend_says_it_once():
    page = render(invented())
    assert page.count("lighter with the atom") == page.count("darker with the atom") == 1


def test_words_are_escaped():
    found = invented()
    found.prompts[0] = '</script><script>alert("1")</script>'
    found.subject = "<v> dog"
    page = render(found)
    assert "<script>alert" not in page
    assert "&lt;v&gt; dog" in page


def test_what_happens_to_other_prompts_is_said_in_numbers():
    found = invented()
    page = " ".join(render(found).split())
    assert (
        "It changes their pixels by <b>6&nbsp;%</b> on average (black to white is 100 %), and 1 of 2 images not" in page
    )
    assert "At 25&nbsp;% of all tokens (places of the image and words of the prompt), layers and steps no atom" in page
    assert "no atom acts. To leave them as they were, train with" in page
    found.others.drift = Drift(None, 0.0, 1.0)
    page = " ".join(render(found).split())
    assert "and 2 of 2 images not at all" in page and "--preserve" not in page
    found.others.floor, found.others.drift = 0.99, Drift(None, 0.06, 0.0)
    page = " ".join(render(found).split())
    assert "an atom acts only where it is stronger than at 99&nbsp;% of the tokens" in page and "--preserve" not in page
    found.others.floor = 1.0
    assert "only where it is stronger than at any token of the other prompts" in " ".join(render(found).split())


def test_sections_without_content_are_left_out():
    found = invented()
    found.densities, found.overlap = [], None
    page = render(found)
    assert 'id="density"' not in page
    assert "Overlap with" not in page


def test_large_pictures_are_made_small_until_the_page_fits(tmp_path, monkeypatch):
    found = invented(size=200)
    found.views = found.views[:3]
    large = len(render(found).encode())
    monkeypatch.setattr(report, "LARGEST", large - 1)
    size = report.write_report(found, tmp_path / "page.html")
    assert size == (tmp_path / "page.html").stat().st_size < large


def test_the_names_are_there_for_other_programs_too(tmp_path):
    found = invented()
    write_report(found, tmp_path / "report.html")
    named = {row.address: str(row.name) for row in found.rows if row.name}
    read = read_names(tmp_path)
    assert named and {address: name for address, (name, _) in read.items()} == named
    address = next(iter(named))
    assert "explains" in read[address][1]
    atoms = json.loads((tmp_path / "report.json").read_text())["atoms"]
    assert len(atoms) == len(found.rows) and atoms[0]["rank"] == 1
    (tmp_path / "report.json").write_text('{"mine": 1}')
    assert read_names(tmp_path) == {} and read_names(tmp_path / "nowhere") == {}
    with pytest.raises(UserError, match=r"report\.json exists already and is not of atomtune inspect"):
        report.refuse_other_file(tmp_path / "report.html")
