"""A base and pictures for every test of training."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.tiny_pixart import save_tiny_pixart


@pytest.fixture(scope="session")
def base(tmp_path_factory) -> str:
    """A saved miniature PixArt-Σ."""
    return str(save_tiny_pixart(tmp_path_factory.mktemp("base")))


@pytest.fixture
def pictures(tmp_path) -> Path:
    """Three small pictures without captions."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    random = np.random.default_rng(0)
    for index in range(3):
        Image.fromarray(random.integers(0, 256, (48, 64, 3), dtype=np.uint8)).save(folder / f"{index}.png")
    return folder
