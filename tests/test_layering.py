"""Imports point one way, so that a lower piece can be read, tested and used without the ones above it."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import atomtune

SOURCE = Path(atomtune.__file__).parent.parent
MODULES = {
    ".".join(file.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__"): file
    for file in sorted((SOURCE / "atomtune").rglob("*.py"))
}

# A piece may import pieces of lower layers and of its own; those of the basement may be imported anywhere.
LAYERS = [
    {"cli", "studio"},
    {"comparing", "easel", "editing", "jobs", "lora", "origins", "sessions", "sweeping", "workspace"},
    {"training", "analysis", "planning"},
    {"storage", "metrics", "sampling", "prompts", "replaying", "dialling"},
    {"atoms", "bases", "kept", "moji", "recording", "showing", "steering", "tracing"},
    {"adapters"},
    {"method"},
]
HEIGHT = {piece: -depth for depth, pieces in enumerate(LAYERS) for piece in pieces}
BASEMENT = {"addresses", "devices", "errors", "files", "manifest", "parsing", "shell", "shipped", "sizes"}


def imports(module: str) -> set[str]:
    """The modules of ours that a module imports, also inside functions and for type checkers alone."""
    names = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import"
            names |= {
                full if (full := f"{node.module}.{alias.name}") in MODULES else str(node.module) for alias in node.names
            }
    return names


def piece_of(module: str) -> str:
    return module.split(".")[1]


@pytest.mark.parametrize("module", [name for name in MODULES if "." in name and name != "atomtune.__main__"])
def test_imports_point_down(module):
    own = piece_of(module)
    assert own in HEIGHT.keys() | BASEMENT, f"{own} has no layer yet: give it one here and in docs/architecture.md"
    others = {piece_of(name) for name in imports(module) & MODULES.keys() if "." in name} - BASEMENT - {own}
    if own in BASEMENT:
        assert not others, f"{own} is imported everywhere, so it imports none of {others}"
    for other in others:
        assert HEIGHT[other] <= HEIGHT[own], f"{own} imports {other}, which is above it"


def test_no_module_imports_itself_by_way_of_others():
    graph = {name: imports(name) & MODULES.keys() - {"atomtune"} for name in MODULES if name != "atomtune"}
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(" → ".join(error.args[1]))


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith("atomtune.method")])
def test_the_method_knows_nothing_of_transformers(module):
    assert not {name.split(".")[0] for name in imports(module)} & {"transformers", "diffusers", "peft"}
