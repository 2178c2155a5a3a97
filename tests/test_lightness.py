"""`import atomtune` and `atomtune --help` are quick: nothing heavy is imported before it is used."""

import subprocess
import sys

import pytest

import atomtune

HEAVY = ("torch", "diffusers", "transformers", "peft", "accelerate", "gradio", "matplotlib")


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(
    "start",
    [
        "import atomtune",
        "import atomtune.cli",
        "from atomtune.cli import main; main(['--help'])",
        "from atomtune.cli import main; main(['generate', '--help'])",
    ],
)
def test_nothing_heavy_is_imported(start):
    report = f"print([name for name in {HEAVY} if name in sys.modules])"
    assert run(f"import sys\ntry:\n    {start}\nexcept SystemExit:\n    pass\n{report}").splitlines()[-1] == "[]"


def test_every_public_name_is_found():
    for name in atomtune.__all__:
        found = getattr(atomtune, name)
        assert getattr(found, "__module__", found.__name__).startswith("atomtune.")  # `coding` is a module
    assert set(atomtune.__all__) <= set(dir(atomtune))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="No atomtune attribute atom"):
        getattr(atomtune, "atom")  # noqa: B009


@pytest.mark.parametrize("first, second", [("atomtune", "peft"), ("peft", "atomtune")])
def test_peft_learns_of_atoms_in_either_order(first, second):
    assert run(f"import {first}, {second}; print(peft.PeftType('ATOMS').value)").strip() == "ATOMS"
