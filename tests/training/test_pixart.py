"""PixArt-Σ's own classes, end to end, on real photographs: customize, kill, resume, generate."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from PIL import Image

import atomtune
from atomtune.bases import load_base
from atomtune.storage.folders import load_adapter
from atomtune.storage.reading import adapter_info
from atomtune.training import load_recipe
from tests.training.run_and_die import customize

PHOTOGRAPHS = Path(__file__).parents[3] / "shared" / "data" / "dreambooth256" / "dog"


@pytest.mark.slow
@pytest.mark.skipif(
    not PHOTOGRAPHS.is_dir(),
    reason=f"needs the DreamBooth photographs in {PHOTOGRAPHS}, which the repository does not hold",
)
def test_customize_kill_resume_generate(base, tmp_path):
    out = tmp_path / "run"
    recipe = {**load_recipe("pixart-sigma"), "base": base, "epochs": 2, "checkpoint_every": 3}
    options = {**recipe, "images": str(PHOTOGRAPHS), "class_name": "dog", "out": str(out), "sample_every": 4}
    assert customize("step:7", **options) == -signal.SIGKILL
    assert (out / "checkpoints" / "step-000006").is_dir()
    assert customize("never", **options) == 0

    written = yaml.safe_load((out / "config.yaml").read_text())
    assert {name: written[name] for name in recipe} == recipe
    assert adapter_info(out).base == base
    pipe = load_base(base)
    prompts = ["a sks dog on the beach", "a photo of a sks dog"]
    before = atomtune.generate(pipe, prompts, num=2, steps=3)
    load_adapter(pipe, out)
    after = atomtune.generate(pipe, prompts, num=2, steps=3)
    assert [drawing.image.size for drawing in after] == [(64, 64)] * 4
    assert all(a.image.tobytes() != b.image.tobytes() for a, b in zip(after, before))
    with Image.open(out / "samples" / "step-000010-0.png") as sample:
        assert sample.size == (64, 64)


@pytest.mark.slow
@pytest.mark.skipif(not PHOTOGRAPHS.is_dir(), reason=f"needs the DreamBooth photographs in {PHOTOGRAPHS}")
def test_from_the_command_line(base, tmp_path):
    out = tmp_path / "run"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for command in (
        ["customize", PHOTOGRAPHS, "--base", base, "--class-name", "dog", "--out", out, "--steps", "2"],
        ["generate", out, "--prompt", "a sks dog on the beach", "--num", "2", "--steps", "2", "--out", out / "drawn"],
    ):
        command = [sys.executable, "-m", "atomtune", *map(str, command)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    assert (out / "adapter" / "adapter_model.safetensors").is_file()
    assert list((out / "drawn").rglob("*.png"))
