"""The inputs of `fuzzing`, guided by coverage: atheris changes those that reached new lines of atomtune.

python -m benchmarks.reliability.guided KIND SECONDS FILE     with `pip install atheris`, which is on Linux alone
"""

import json
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

KINDS = ("adapter folders", "LoRA files", "presets", "captions", "YAML", "sweeps", "images")


def measure(folder: Path, seconds: int) -> dict[str, Any]:
    """How many inputs of each kind were read and refused in so many seconds. Raises `RuntimeError` for any other end,
    with what atheris says of it."""
    if find_spec("atheris") is None:
        raise RuntimeError("this part needs atheris: pip install atheris")
    results: dict[str, Any] = {"seconds": seconds}
    for kind in KINDS:
        (folder / kind).mkdir()
        file = folder / kind / "counted.json"
        command = [sys.executable, "-m", "benchmarks.reliability.guided", kind, str(seconds), str(file)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"{kind}: {(done.stdout + done.stderr)[-3000:]}")
        results[kind] = json.loads(file.read_text())
        print(kind, results[kind], flush=True)
    return results


def main(kind: str, seconds: str, file: str) -> None:
    atheris: Any = import_module("atheris")
    with atheris.instrument_imports(include=["atomtune"]):
        from benchmarks.reliability import fuzzing
    from tests.tiny_pixart import save_tiny_pixart

    folder = Path(file).parent
    save_tiny_pixart(folder / "base")
    (folder / "inputs").mkdir()
    each, found = fuzzing.case(*fuzzing.Inputs(folder / "inputs").kinds()[kind])

    def one(data: bytes) -> None:
        each.hypothesis.fuzz_one_input(data)
        Path(file).write_text(json.dumps(found))  # atheris ends the process

    # No limits of libFuzzer's own: those of `fuzzing` hold.
    limits = ["-timeout=0", "-rss_limit_mb=0", "-max_len=4096", "-len_control=0"]
    atheris.Setup([sys.argv[0], f"-max_total_time={seconds}", "-seed=1", *limits], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])
