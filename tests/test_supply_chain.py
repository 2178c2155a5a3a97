"""What `make` installs is known to the byte. That the demo asks the network for nothing is in cli/test_demo.py."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
APART = re.compile(r"(torch=|cuda|nvidia|triton|pycparser)")


def test_every_pinned_file_has_its_hash():
    """But for torch and its libraries, whose wheel may be a local one."""
    pinned = {line.split(" ;")[0] for line in (ROOT / "constraints.txt").read_text().splitlines() if line[0] != "#"}
    hashed = re.findall(r"^([^\s#]+==\S+)[^\n]*\\\n +--hash=sha256:", (ROOT / "hashes.txt").read_text(), re.MULTILINE)
    assert {*hashed} == {line for line in pinned if not APART.match(line)}
