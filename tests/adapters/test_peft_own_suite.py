"""PEFT's own tests of adapters on custom models, from the source package of the PEFT that is installed, with atoms."""

import os
import re
import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path

import pytest


@pytest.mark.slow
def test_atoms_pass_what_peft_asks_of_its_own_methods(tmp_path):
    fetch = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "peft"]
    subprocess.run([*fetch, f"peft=={version('peft')}", "-d", tmp_path], check=True, timeout=300)
    with tarfile.open(next(tmp_path.glob("peft-*.tar.gz"))) as archive:
        archive.extractall(
            tmp_path, [m for m in archive if re.fullmatch(r"[^/]+/tests/\w+\.py", m.name)], filter="data"
        )
    (tests,) = tmp_path.glob("peft-*/tests")
    (tests / "__init__.py").touch()  # the package leaves it out
    (tests.parent / "pytest.ini").write_text("[pytest]\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "peft_plugin", "tests/test_custom_models.py"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent), "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(command, cwd=tests.parent, env=environment, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-1000:]
    passed = re.search(r"(\d+) passed", result.stdout)
    assert passed and int(passed[1]) > 400, result.stdout[-300:]
