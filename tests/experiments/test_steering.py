"""The pages and figures of the steering experiments when there are results, and when there are none."""

from importlib import import_module

from experiments.common.report import ROOT
from experiments.pages import steering


def test_without_results_there_are_no_sections(tmp_path):
    assert "##" not in steering.page(tmp_path)


def test_figures_are_drawn_from_the_results(tmp_path):
    for name in steering.EXPERIMENTS:
        import_module(f"experiments.{name}.plot").plot(ROOT / "experiments" / name, tmp_path)
    drawn = {file.name for file in (tmp_path / "results" / "figures").glob("*.png")}
    lines = steering.page(ROOT / "experiments").splitlines()
    wanted = {line.split("figures/")[1].split(")")[0] for line in lines if "](figures/" in line}
    assert wanted - drawn <= {"steering-influence.png"}  # drawn by the model, not from results
