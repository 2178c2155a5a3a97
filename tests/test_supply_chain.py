"""What `make` installs is known to the byte. That the demo asks the network for nothing is in cli/test_demo.py."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_every_pinned_file_has_its_hash():
    pinned = {line.split(" ;")[0] for line in (ROOT / "constraints.txt").read_text().splitlines() if line[0] != "#"}
    hashed = [
        each
        for name in ("hashes.txt", "hashes-cuda.txt")
        for each in re.findall(r"^([^\s#]+==\S+)[^\n]*\\\n +--hash=sha256:", (ROOT / name).read_text(), re.MULTILINE)
    ]
    assert sorted(hashed) == sorted(pinned)
