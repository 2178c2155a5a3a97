"""The page of the steering experiments is what their JSON says."""

from dataclasses import replace

from experiments.report import ROOT
from experiments.steering import report
from experiments.steering.common import Place


def test_the_page_is_that_of_the_results_that_are_there():
    assert (ROOT / "docs" / "results" / "steering.md").read_text(encoding="utf-8") == report.page(Place())


def test_without_results_there_are_no_sections(tmp_path):
    assert "##" not in report.page(replace(Place(), results=tmp_path))


def test_figures_are_drawn_from_the_results(tmp_path):
    place = replace(Place(), docs=tmp_path)
    for module in report.modules():
        module.figure(place)
    text = report.page(place)
    drawn = {file.name for file in (tmp_path / "figures").glob("*.png")}
    wanted = {line.split("figures/")[1].split(")")[0] for line in text.splitlines() if "](figures/" in line}
    assert wanted - drawn <= {"steering-influence.png"}  # drawn by the model, not from JSON
