"""Every experiment is a folder of the same few things, and none reaches into the library."""

import ast
import re
from importlib import import_module

import pytest

pytest.importorskip("resvg_py", reason="pretraining renders with resvg-py, of the extra `dev`")

from experiments.__main__ import NAMES, SMALL
from experiments.common.cells import FILE, records, settings_of
from experiments.common.report import ROOT

HOME = ROOT / "experiments"
MODULES = sorted(HOME.rglob("*.py"))


def test_every_folder_is_an_experiment():
    folders = {file.parent.name for file in HOME.glob("*/run.py")}
    assert folders == set(NAMES)
    assert {file.name for file in HOME.iterdir() if file.is_dir()} - folders - {"__pycache__"} == {"common", "pages"}


@pytest.mark.parametrize("name", NAMES)
def test_an_experiment_offers_what_the_command_asks_for(name):
    run = import_module(f"experiments.{name}.run")
    assert callable(run.grid) and callable(run.measure) and callable(run.results)
    readme = (HOME / name / "README.md").read_text(encoding="utf-8")
    assert readme.startswith("# ") and readme.count("<!-- results -->") == 1
    for image in re.findall(r"!\[.*]\((.*)\)", readme):
        assert (HOME / name / image).is_file()


@pytest.mark.parametrize("name", [name for name in NAMES if (HOME / name / FILE).is_file()])
def test_cells_have_plain_names_and_the_settings_of_the_grid(name):
    """But for the weights of the base, which may have been others when they were measured."""
    cells, grid = records(HOME / name), import_module(f"experiments.{name}.run").grid()
    assert list(cells) == sorted(cells)
    for key, record in cells.items():
        assert re.fullmatch(r"[a-z0-9.-]+", key)
        now = settings_of(grid[key])
        assert record["settings"] | {"base": now.get("base")} == now | {"base": now.get("base")}


def test_only_the_small_experiments_have_a_slice_of_every_kind():
    assert all(import_module(f"experiments.{name}.run").grid(quick=True) for name in SMALL)


@pytest.mark.parametrize("file", MODULES, ids=lambda file: str(file.relative_to(HOME)))
def test_no_experiment_patches_the_library_or_uses_what_is_private(file):
    tree = ast.parse(file.read_text(encoding="utf-8"))
    imported = {
        (alias.asname or alias.name).partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert not any(alias.name.startswith("_") for alias in node.names), f"line {node.lineno}"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in ("setattr", "delattr"), f"line {node.lineno}"
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            owner = node.value.id
            assert owner in ("self", "cls") or not node.attr.startswith("_"), f"line {node.lineno}"
            assert owner not in imported or isinstance(node.ctx, ast.Load), (
                f"line {node.lineno}: {owner}.{node.attr} = …"
            )
