"""A base and images for every test of training."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import atomtune
from tests.training.quick import QUICK


@pytest.fixture
def images(tmp_path) -> Path:
    """Three small images without captions."""
    folder = tmp_path / "images"
    folder.mkdir()
    random = np.random.default_rng(0)
    for index in range(3):
        Image.fromarray(random.integers(0, 256, (48, 64, 3), dtype=np.uint8)).save(folder / f"{index}.png")
    return folder


@pytest.fixture
def run(base, images, tmp_path):
    """Customize into a folder of `tmp_path`."""

    def run(out: str = "run", **options):
        return atomtune.customize(**{**QUICK, "images": images, "base": base, "out": tmp_path / out, **options})

    return run
