"""What the pages tell people to type works."""

import re
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent


def blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)


PAGES = [
    "README.md",
    *(
        f"docs/how-to/{page}.md"
        for page in ("customize", "keep-the-rest", "steer", "inspect", "peft", "own-training-loop")
    ),
]


@pytest.mark.parametrize("page", PAGES)
def test_examples_name_what_exists(page):
    import atomtune

    for name in re.findall(r"\batomtune\.(\w+)\(", "".join(blocks(page))):
        assert name in atomtune.__all__


def resolve(name: str) -> Any:
    """What a dotted name means: modules are imported, everything else is an attribute."""
    found: Any = import_module((parts := name.split("."))[0])
    for number, part in enumerate(parts[1:], 2):
        if not hasattr(found, part):
            import_module(".".join(parts[:number]))
        found = getattr(found, part)
    return found


def test_what_the_reference_lists_is_importable_from_atomtune():
    import atomtune

    page = (ROOT / "docs" / "reference" / "index.md").read_text(encoding="utf-8")
    listed = re.findall(r"^::: (\S+)$", page, re.MULTILINE)
    assert len(listed) == page.count(":::")
    for name in listed:
        name = re.sub(r"(\.[A-Z]\w+)\.\w+$", r"\1", name)  # of a method, its class
        public = name.rpartition(".")[2]
        assert public in atomtune.__all__ and getattr(atomtune, public) is resolve(name)


TEXTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "Makefile", "mkdocs.yml")),
    *(ROOT / "docs").rglob("*.md"),
    *(file for folder in ("src", "experiments", "pretraining", "examples") for file in (ROOT / folder).rglob("*.py")),
    *(file for folder in ("experiments", "pretraining") for file in (ROOT / folder).rglob("*.md")),
]


@pytest.mark.parametrize("file", TEXTS, ids=lambda file: str(file.relative_to(ROOT)))
def test_no_text_names_a_part_that_does_not_exist(file):
    text = file.read_text(encoding="utf-8")
    for name in set(re.findall(r"\b(?:atomtune|experiments)(?:\.[a-z]\w*)+", text)):
        if name.rpartition(".")[2] not in ("py", "md", "json", "jsonl", "yaml"):
            resolve(name)
    for path in set(re.findall(r"(?<![\w/.~-])(?:src|tests|docs|experiments|pretraining|examples)/[\w./-]*\w", text)):
        assert (ROOT / path).exists() or re.search("[A-Z]{4}", path.removesuffix("README.md")), path  # NAME: any


def test_make_and_readme_know_the_same_commands():
    from atomtune.cli import app

    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    commands = {name for name in app if not name.startswith("-")}
    assert set(re.findall(r"^\| `atomtune (\w+)", readme, re.MULTILINE)) == commands
