"""A base and images to train on, as in tests/training."""

from tests.training.conftest import images, run

__all__ = ["images", "run"]
