"""torch.compile, fullgraph, in a subprocess without jaxtyping's checks (they are not what a user compiles)."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize(
    "backend",
    [
        "aot_eager",
        pytest.param(
            "inductor",
            marks=pytest.mark.skipif(
                not any(map(shutil.which, ("g++", "c++", "clang++"))),
                reason="inductor needs a C++ compiler, and none was found: install g++",
            ),
        ),
    ],
)
def test_compiled_as_one_graph_the_model_is_the_same_and_density_does_not_recompile(backend):
    script = Path(__file__).with_name("compiled.py")
    result = subprocess.run([sys.executable, script, backend, ROOT], capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "same outputs, same gradients, one graph" in result.stdout
