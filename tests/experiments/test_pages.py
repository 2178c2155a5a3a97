"""Generated pages are what the results say."""

import re
from importlib import import_module

import pytest

pytest.importorskip("matplotlib", reason="figures are drawn with matplotlib, of the extra `dev`")
pytest.importorskip("resvg_py", reason="pretraining renders with resvg-py, of the extra `dev`")

from experiments.__main__ import NAMES
from experiments.common.cells import read
from experiments.common.report import DOCS, ROOT, verdicts
from experiments.pages import PAGES

HOME = ROOT / "experiments"


def generated(text: str) -> str:
    return re.findall(r"<!-- results -->\n\n(.*)\n\n<!-- /results -->", text, re.DOTALL)[0]


@pytest.mark.parametrize("page", PAGES)
def test_the_committed_page_is_that_of_the_committed_results(page):
    text = (DOCS / page).read_text(encoding="utf-8")
    assert PAGES[page][1](HOME) == (text if page.startswith("results/") else generated(text))
    for figure in re.findall(r"!\[.*]\((.*)\)", text):
        assert (DOCS / page).parent.joinpath(figure).is_file()


@pytest.mark.parametrize("name", [name for name in NAMES if read(HOME / name)])
def test_the_table_of_a_readme_is_that_of_the_committed_results(name):
    run = import_module(f"experiments.{name}.run")
    said = verdicts(run.claims(HOME / name)) if hasattr(run, "claims") else ""
    table = "\n\n".join(filter(None, (run.results(HOME / name), said)))
    assert generated((HOME / name / "README.md").read_text(encoding="utf-8")) == table
