"""Every example runs, with fewer steps, in a folder of its own, with nothing else of this repository at hand."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parent.parent.parent / "examples").glob("*.py"))


@pytest.mark.slow
@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_an_example_runs(file, tmp_path):
    short = tmp_path / file.name
    short.write_text(re.sub(r"steps=\d+", "steps=4", file.read_text(encoding="utf-8")), encoding="utf-8")
    done = subprocess.run([sys.executable, short], cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert done.stdout
    for line in done.stdout.splitlines():
        assert not line.endswith(".png") or (tmp_path / line).is_file()


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_an_example_uses_public_names_alone(file):
    import atomtune

    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            assert not {name.partition(".")[0] for name in names} & {"experiments", "tests", "pretraining"}
            assert not any(name.startswith("atomtune.") for name in names)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "atomtune":
            assert node.attr in (*atomtune.__all__, "__file__")
