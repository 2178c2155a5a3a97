"""What the pages tell people to type works."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.slow
def test_the_training_loop_of_the_documentation_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scope: dict = {}
    for block in blocks("docs/how-to/own-training-loop.md"):
        exec(block.replace("range(250)", "range(2)"), scope)
    assert (tmp_path / "runs" / "mine" / "adapter_model.safetensors").is_file()
    assert scope["codes"].active_per_token == 10


@pytest.mark.slow
def test_what_the_documentation_says_of_peft_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scope: dict = {}
    for block in blocks("docs/how-to/peft.md"):
        exec(block, scope)
    assert scope["model"].peft_config.keys() == {"default", "both"}


@pytest.mark.slow
def test_the_dials_of_the_documentation_turn(tmp_path, monkeypatch):
    """On an adapter of two steps, and with images of two."""
    import atomtune

    monkeypatch.chdir(tmp_path)
    images = Path(atomtune.__file__).parent / "moji" / "demo" / "teapot"
    atomtune.customize(images, class_name="teapot", out="runs/teapot", steps=2, sample_every=0, measure_every=1)
    scope: dict = {}
    for block in blocks("docs/how-to/steer.md"):
        block = block.replace('"photos/teapot"', repr(str(images)))
        exec(re.sub(r"generate\((.*)\)", r"generate(\1, steps=2)", block), scope)
    assert set(scope["board"].preset()) == {"density", "gain", "dropped", "schedule"}
    assert scope["layer"].maps(139).shape == (4, 64)


PAGES = [
    "README.md",
    *(f"docs/how-to/{page}.md" for page in ("customize", "steer", "inspect", "peft", "own-training-loop")),
]


@pytest.mark.parametrize("page", PAGES)
def test_examples_name_what_exists(page):
    import atomtune

    for name in re.findall(r"\batomtune\.(\w+)\(", "".join(blocks(page))):
        assert name in atomtune.__all__


def test_make_and_readme_know_the_same_commands():
    from atomtune.cli import app

    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    commands = {name for name in app if not name.startswith("-")}
    assert set(re.findall(r"^\| `atomtune (\w+)", readme, re.MULTILINE)) == commands
