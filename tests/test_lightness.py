"""`import atomtune` and `atomtune --help` are quick: nothing heavy is imported before it is used."""

import inspect
import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import atomtune

HEAVY = ("torch", "diffusers", "transformers", "peft", "accelerate", "gradio", "matplotlib")


def run(code: str, env: dict[str, str] | None = None) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env).stdout


@pytest.mark.parametrize(
    "start",
    [
        "import atomtune",
        "import atomtune.cli",
        "from atomtune.cli import main; main(['--help'])",
        "from atomtune.cli import main; main(['generate', '--help'])",
        "import tempfile; from atomtune.cli import main; main(['examples', tempfile.mkdtemp()])",
    ],
)
def test_nothing_heavy_is_imported(start):
    report = f"print([name for name in {HEAVY} if name in sys.modules])"
    assert run(f"import sys\ntry:\n    {start}\nexcept SystemExit:\n    pass\n{report}").splitlines()[-1] == "[]"


@pytest.mark.parametrize("arguments", [["recipes"], ["customize", "--help"], ["sweep", "--help"]])
def test_options_and_recipes_need_no_model_library(arguments):
    start = f"from atomtune.cli import main\ntry:\n    main({arguments})\nexcept SystemExit:\n    pass"
    report = f"import sys; print({{*sys.modules}} & {{*{HEAVY[1:]}}})"
    assert run(f"{start}\n{report}").splitlines()[-1] == "set()"


def waiting(**setting: str) -> str:
    """OMP_WAIT_POLICY and GOMP_SPINCOUNT after a command, `setting` being all that the user had set before it."""
    unset = {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    command = "import os\nfrom atomtune.cli import main\ntry:\n    main(['--help'])\nexcept SystemExit:\n    pass"
    report = "print(os.environ.get('OMP_WAIT_POLICY'), os.environ.get('GOMP_SPINCOUNT'))"
    return run(f"{command}\n{report}", unset | setting).splitlines()[-1]


def test_waiting_threads_sleep_unless_the_user_decides():
    assert waiting() == "PASSIVE 4000"
    assert waiting(GOMP_SPINCOUNT="7") == "PASSIVE 7"
    assert waiting(OMP_WAIT_POLICY="ACTIVE") == "ACTIVE None"


def test_every_public_name_is_found():
    for name in atomtune.__all__:
        found = getattr(atomtune, name)
        assert getattr(found, "__module__", found.__name__).startswith("atomtune.")  # some are modules
    assert set(atomtune.__all__) <= set(dir(atomtune))


def test_what_a_public_function_returns_is_public_too():
    returned = set()
    for name in atomtune.__all__:
        if inspect.isfunction(found := getattr(atomtune, name)):
            words = re.findall(r"\b[A-Z]\w+", str(found.__annotations__.get("return")))
            module = sys.modules[found.__module__]
            returned |= {
                word for word in words if getattr(vars(module).get(word), "__module__", "").startswith("atomtune.")
            }
    assert {"Drawing", "Influences", "Trace"} <= returned <= set(dir(atomtune))


def test_names_of_the_pages_are_there_after_import_atomtune_alone():
    assert atomtune.__version__ == version("atomtune")
    pages = [*Path("docs").rglob("*.md"), Path("README.md")]
    written = {name for page in pages for name in re.findall(r"\batomtune\.([A-Za-z_]\w*)", page.read_text())}
    written -= {"md", "git", "yml"}
    assert len(written) > 20 and written <= set(dir(atomtune))
    assert run("import atomtune; print(atomtune.sampling.read_settings.__name__)").strip() == "read_settings"


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="No atomtune attribute atom"):
        getattr(atomtune, "atom")  # noqa: B009


@pytest.mark.parametrize("first, second", [("atomtune", "peft"), ("peft", "atomtune")])
def test_peft_learns_of_atoms_in_either_order(first, second):
    assert run(f"import {first}, {second}; print(peft.PeftType('ATOMS').value)").strip() == "ATOMS"
