"""Everything that runs on a GPU, on tensors that only say they are on one: what is misplaced raises (tests/fake_gpu).

In a process of its own, because torch, accelerate and diffusers would see that GPU in every later test.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.slow
def test_nothing_is_misplaced_on_a_gpu():
    files = [str(HERE / "fake_gpu" / name) for name in ("training.py", "using.py", "planning.py", "pretraining.py")]
    command = [sys.executable, "-m", "pytest", "-q", *files]
    environment = os.environ | {"ACCELERATE_TORCH_DEVICE": "gpu", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, cwd=HERE.parent, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]
