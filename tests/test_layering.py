"""Imports point one way, so that a lower piece can be read, tested and used without the ones above it."""

import ast
from pathlib import Path

import pytest

import atomtune

ROOT = Path(atomtune.__file__).parent
MODULES = sorted(ROOT.rglob("*.py"))

# A piece may import pieces of lower layers and of its own; those of the basement may be imported anywhere.
LAYERS = [
    {"cli", "studio"},
    {"editing", "distillation"},
    {
        "training",
        "analysis",
        "conversion",
        "lora_files",
        "merging",
        "pruning",
        "sampling",
        "pipelines",
        "metrics",
        "moji",
    },
    {"atoms", "tracing"},
    {"adapters", "dictionary_attention"},
    {"dictionary"},
    {"thresholds"},
    {"coding", "dials", "cards", "devices"},
]
HEIGHT = {piece: -depth for depth, pieces in enumerate(LAYERS) for piece in pieces}
BASEMENT = {"errors", "files", "manifest"}


def piece_of(module: Path) -> str:
    return module.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(module: Path) -> set[str]:
    """The full names in every import of a module, also inside functions."""
    names = set()
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("module", MODULES, ids=lambda module: str(module.relative_to(ROOT)))
def test_imports_point_down(module):
    own = piece_of(module)
    if own in {"__init__", "__main__"}:
        return
    assert own in HEIGHT.keys() | BASEMENT, f"{own} has no layer yet: give it one here and in docs/architecture.md"
    others = {name.split(".")[1] for name in imports(module) if name.startswith("atomtune.")} - BASEMENT - {own}
    if own in BASEMENT:
        assert not others, f"{own} is imported everywhere, so it imports none of {others}"
    for other in others:
        assert HEIGHT[other] <= HEIGHT[own], f"{own} imports {other}, which is above it"


@pytest.mark.parametrize("piece", ["coding", "dictionary", "dictionary_attention"])
def test_sparse_coding_knows_nothing_of_transformers(piece):
    libraries = {name.split(".")[0] for name in imports(ROOT / f"{piece}.py")}
    assert not libraries & {"transformers", "diffusers", "peft"}
