"""Sizes as people write them."""

import pytest

from atomtune.errors import UserError
from atomtune.sizes import Size


@pytest.mark.parametrize(
    ("written", "size", "plain"),
    [(64, Size(64, 64), 64), ("64", Size(64, 64), 64), ("64x48", Size(64, 48), "64x48"), ("64 X 64", Size(64, 64), 64)],
)
def test_width_comes_first_and_a_square_is_one_number(written, size, plain):
    assert Size.of(written) == size
    assert size.plain == plain and Size.of(size.plain) == size
    assert size.shape == (size.height, size.width)


@pytest.mark.parametrize("written", ["", "big", "64x", "64x48x3", "1e3", True, 64.5])
def test_what_is_no_size_is_refused_in_one_sentence(written):
    with pytest.raises(UserError, match="resolution must be a number of pixels, such as 1024, or WIDTHxHEIGHT"):
        Size.of(written)
