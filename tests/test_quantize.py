"""int8, fp8 and nf4, with torchao and bitsandbytes (tests/quantize).

In a process of its own, with the folder in which `make` installs the two: PEFT imports torchao wherever it is
installed, and torchao prints warnings then, which every other test would have to look past.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
PACKAGES = Path(sys.prefix) / "quantize"


@pytest.mark.slow
def test_bases_in_fewer_bits():
    assert PACKAGES.is_dir(), f"{PACKAGES} is missing: `make test` installs torchao and bitsandbytes there"
    files = [str(HERE / "quantize" / name) for name in ("loading.py", "training.py")]
    paths = [str(PACKAGES), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", *files]
    result = subprocess.run(command, cwd=HERE.parent, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]
    assert "skipped" not in result.stdout.splitlines()[-1]
