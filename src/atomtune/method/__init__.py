"""The paper's method on tensors and modules; nothing here knows of a model."""

from atomtune.method import coding

__all__ = ["coding"]
