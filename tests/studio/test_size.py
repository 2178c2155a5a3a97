"""The page is one small room: what it computes is in the library, where a notebook has it too."""

import ast
from pathlib import Path

import atomtune

FILES = sorted((Path(atomtune.__file__).parent / "studio").glob("*.py"))


def test_it_has_at_most_800_lines():
    lines = [line for file in FILES for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    assert len(FILES) > 5 and len(lines) <= 800


def test_it_computes_nothing():
    """No tensors, no arrays, no models."""
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [node.module] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not {str(name).split(".")[0] for name in names} & {"torch", "numpy", "diffusers", "peft"}, file
