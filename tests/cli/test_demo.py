"""The demo, whole: it learns, its grid and numbers are where it says, and they are the numbers that it prints."""

import contextlib
import json
import os
import re
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
from PIL import Image

from atomtune import generate, load_adapter, load_base, manifest
from atomtune.cli.demo import NUM, UNSEEN
from atomtune.metrics import background_colour, load_judge
from atomtune.metrics.scores import table
from atomtune.moji.scenes import BACKGROUNDS
from atomtune.prompts import subject_prompts
from atomtune.shipped import IMAGES
from atomtune.storage.reading import adapter_info
from atomtune.storage.runs import NAMES
from atomtune.training.data import read_image


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """`atomtune` of the wheel, installed in an environment that has its dependencies and nothing of this repository."""
    folder = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "--quiet"]
    root = Path(__file__).parents[2]
    build = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(root)]
    subprocess.run([*pip, *build], check=True)
    (wheel,) = folder.glob("atomtune-*.whl")
    venv.create(folder / "venv", symlinks=True)
    subprocess.run([*pip, "--python", str(folder / "venv"), "install", "--no-deps", str(wheel)], check=True)
    (site,) = (folder / "venv").glob("lib/python*/site-packages")
    # What this environment has, but for atomtune: an editable install is found through a file that is not read there.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    return folder / "venv" / "bin" / "atomtune"


def without_network() -> list[str]:
    """The beginning of a command that has a network of its own, which leads nowhere; nothing where that is not allowed
    (in some containers)."""
    for words in (["unshare", "--net"], ["unshare", "--user", "--map-root-user", "--net"]):
        with contextlib.suppress(OSError):
            if subprocess.run([*words, "true"], capture_output=True).returncode == 0:
                return words
    return []


def prompts_of_the_pages() -> list[str]:
    """What README and the how-to pages draw with an adapter of the teapot."""
    root = Path(__file__).parents[2]
    pages = [root / "README.md", *sorted((root / "docs" / "how-to").glob("*.md"))]
    lines = [line for page in pages for line in page.read_text(encoding="utf-8").splitlines()]
    drawn = [line for line in lines if "generate(pipe" in line or "generate runs/teapot" in line]
    return sorted({prompt for line in drawn for prompt in re.findall('"(a sks [^"]*)"', line)})


@pytest.mark.slow
def test_demo(tmp_path, installed):
    """From the wheel alone, in an empty folder, without a network. HF_HUB_OFFLINE, which would hide a request, is not
    set."""
    demo = [*without_network(), str(installed), "demo", "--out", str(tmp_path)]
    environment = {"COLUMNS": "120"} | (
        {"OMP_NUM_THREADS": threads} if (threads := os.getenv("OMP_NUM_THREADS")) else {}
    )
    done = subprocess.run(demo, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for word in ("ConnectionError", "Max retries", "Name or service", "resolve host"):
        assert word not in done.stderr
    printed = done.stdout
    summary = json.loads((tmp_path / "scores.json").read_text())
    for label, values in table(summary["scores"]):
        line = next(line for line in printed.splitlines() if label in line)
        assert [cell.strip() for cell in line.strip("│").split("│")] == [label, *values]

    base, atoms = summary["scores"]["base"], summary["scores"]["atoms"]
    assert atoms["fidelity"] > base["fidelity"] + 0.2  # the subject is learnt ...
    assert atoms["background"] >= 0.8  # ... and the prompt still obeyed
    assert 0 < atoms["used_per_token"] <= 10
    assert 0 < atoms["alive"] <= atoms["atoms"]
    assert 1 <= atoms["vendi"] <= NUM

    assert len(summary["prompts"]) == 8
    assert not set(UNSEEN) & set(summary["prompts"][:5])
    seen = {word for prompt in summary["prompts"][:5] for word in prompt.split() if word in BACKGROUNDS}
    assert not any(word in seen for prompt in UNSEEN for word in prompt.split())
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.width > 8 * 128
        assert grid.height > 3 * 128
    assert [name for name in NAMES if not (tmp_path / name).is_file()] == []
    assert {*NAMES, "grid.png", "scores.json"} <= manifest.written(tmp_path)

    made_up = subject_prompts("moji", "sks teapot", adapter_info(tmp_path).metadata["backgrounds"])
    shown = [*dict.fromkeys([*made_up, *prompts_of_the_pages()])]
    assert len(made_up) == 3 and len(shown) > 3
    pipe = load_base("moji")
    load_adapter(pipe, tmp_path)
    images = [drawing.image for drawing in generate(pipe, [*shown, "a sks teapot on a blue background"], num=NUM)]
    assert [background_colour(image) for image in images[: 3 * NUM : NUM]] == ["white", "yellow", "orange"]
    references = [read_image(file) for file in sorted((IMAGES / "teapot").glob("*.png"))]
    fidelity = load_judge().fidelity(images, references).reshape(-1, NUM)
    for prompt, own in zip(shown, fidelity):  # 95 of 100 images of the same drawing have .73
        assert own.mean() > 0.73 and own.min() > 0.5, prompt
    assert fidelity[-1].max() < fidelity[:3].min()  # on the subject's own colour the judge sees it worst

    def times() -> dict[str, int]:
        return {
            str(file): file.stat().st_mtime_ns
            for file in tmp_path.rglob("*.*")
            if file.suffix in (".png", ".safetensors")
        }

    before = times()
    next(tmp_path.glob("images/atoms/001-*.png")).unlink()
    again = subprocess.run(demo, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert again.returncode == 0 and json.loads((tmp_path / "scores.json").read_text()) == summary
    changed = [
        file for file, time in times().items() if time != before[file]
    ]  # not trained again, no image drawn again
    assert [Path(file).name[:3] for file in changed if not file.endswith("grid.png")] == ["001"]
    other = subprocess.run([*demo, "--seed", "1"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert other.returncode == 2 and "holds another run (seed 0 there and 1 now)" in other.stderr

    printed_commands = [line.split(":  ")[1].split() for line in printed.splitlines() if f"{installed} " in line]
    assert [command[1] for command in printed_commands] == ["generate", "inspect"]
    for line in [line for line in printed.splitlines() if " generate " in line]:
        subprocess.run(line.split(":  ")[1], shell=True, check=True, cwd=tmp_path, env=environment)


def test_the_table_leaves_a_dash_where_a_method_has_no_such_number():
    summary = {"base": {"fidelity": 0.5}, "atoms": {"fidelity": 0.75, "alive": 1234}}
    assert dict(table(summary)) == {
        "atoms alive": ["–", "1,234"],
        "fidelity to the images": ["0.500", "0.750"],
    }
