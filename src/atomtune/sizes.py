"""The size of an image, as people write it: 1024 is a square, 1024x768 is wider than high.

    Size.of(1024)          1024 × 1024 pixels
    Size.of("1024x768")    1024 pixels wide and 768 high

In files (settings of images, config.yaml) a size is `plain`: a whole number if it is a square, else such a text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any

from cyclopts import Parameter

from atomtune.errors import UserError


@dataclass(frozen=True)
class Size:
    """Width and height in pixels."""

    width: int
    height: int

    @classmethod
    def of(cls, value: int | str | Size) -> Size:
        """A size from what a user wrote: a whole number, or WIDTHxHEIGHT. Raises `UserError` for anything else."""
        if isinstance(value, Size):
            return value
        found = re.fullmatch(r"\s*(-?\d+)(?:\s*[xX×]\s*(-?\d+))?\s*", str(value))
        if found is None:
            raise UserError(
                "resolution must be a number of pixels, such as 1024, or WIDTHxHEIGHT, such as 1024x768, got "
                f"{value!r}."
            )
        width, height = found[1], found[2] or found[1]
        return cls(int(width), int(height))

    @property
    def plain(self) -> int | str:
        """As JSON and YAML hold it."""
        return self.width if self.width == self.height else f"{self.width}x{self.height}"

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width, in the order of tensors."""
        return self.height, self.width

    def __str__(self) -> str:
        return str(self.plain)


def _read(_kind: Any, tokens: Any) -> Size:
    return Size.of(tokens[0].value)


Resolution = Annotated[Size, Parameter(converter=_read, n_tokens=1, accepts_keys=False)]
"""An option of the command line that is a size."""
GivenSize = int | str | Size
"""A size as Python callers may give it: 1024 or "1024x768"."""
