"""A picture whose drawing is where it is known to be."""

import pytest
from PIL import Image


@pytest.fixture
def scene() -> Image.Image:
    """A black square of 28 pixels from (18, 18) on a green background, 64 × 64."""
    image = Image.new("RGB", (64, 64), (72, 160, 88))
    image.paste((0, 0, 0), (18, 18, 46, 46))
    return image
