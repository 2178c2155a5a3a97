"""What may be a seed."""

import pytest
import torch

from atomtune.errors import UserError, check_seed


@pytest.mark.parametrize("seed, count", [(0, 1), (2**64 - 1, 1), (2**64 - 4, 4)])
def test_seeds_that_pass_are_those_that_torch_takes(seed, count):
    check_seed(seed, count)
    torch.Generator().manual_seed(seed + count - 1)


@pytest.mark.parametrize("seed, count", [(-1, 1), (2**64, 1), (10**20, 1), (2**64 - 3, 4), (1.5, 1), ("1", 1)])
def test_other_seeds_are_refused(seed, count):
    with pytest.raises(UserError, match="must be a whole number from 0 to"):
        check_seed(seed, count)


def test_a_number_has_its_noun_in_the_right_form():
    from atomtune.errors import counted

    assert [counted(number, "image") for number in (0, 1, 2000)] == ["0 images", "1 image", "2,000 images"]
