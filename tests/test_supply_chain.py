"""What `make` installs is known to the byte, and no command asks the network for anything that was not named."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
APART = re.compile(r"(torch=|cuda|nvidia|triton|pycparser)")


def test_every_pinned_file_has_its_hash():
    """But for torch and its libraries, whose wheel may be a local one."""
    pinned = {line.split(" ;")[0] for line in (ROOT / "constraints.txt").read_text().splitlines() if line[0] != "#"}
    hashed = re.findall(r"^([^\s#]+==\S+)[^\n]*\\\n +--hash=sha256:", (ROOT / "hashes.txt").read_text(), re.MULTILINE)
    assert {*hashed} == {line for line in pinned if not APART.match(line)}


STEPS = """
import atomtune
from atomtune.shipped import IMAGES
from atomtune.cli import main
options = dict(class_name="teapot", steps=2, preserve=False, sample_every=0)
atomtune.customize(IMAGES / "teapot", out="runs/teapot", **options)
main(["generate", "runs/teapot", "--prompt", "a sks teapot", "--steps", "2", "--out", "drawn"])
"""


@pytest.mark.slow
def test_the_demos_steps_need_no_network(tmp_path):
    """In a network namespace of its own, without HF_HUB_OFFLINE, which would hide a request."""
    alone = ["unshare", "--net"]
    if os.geteuid() != 0 or subprocess.run([*alone, "true"], capture_output=True).returncode != 0:
        pytest.skip("only root can make a network namespace, and not in every container")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    environment |= {"HOME": str(tmp_path), "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}
    command = [*alone, sys.executable, "-c", STEPS]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "runs/teapot/adapter/adapter_model.safetensors").is_file()
    assert list((tmp_path / "drawn").glob("*.png"))
    for word in ("ConnectionError", "Max retries", "Name or service", "resolve host"):
        assert word not in done.stderr
