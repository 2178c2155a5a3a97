"""Addresses point by the numbers atoms and layers carry, not by where they sit now."""

import pytest
import torch

from atomtune.addresses import find
from atomtune.errors import UserError

PRUNED = [(1, torch.tensor([4, 9])), (5, torch.tensor([0, 2, 7]))]


def test_an_address_is_by_number_and_id():
    assert find("L5", PRUNED, "adapter") == (1, None)
    assert find("L1[9]", PRUNED, "adapter") == (0, 1)
    assert find(" L5[2] ", PRUNED, "adapter") == (1, 1)


@pytest.mark.parametrize("address", ["L0", "L1[0]", "L5[99]", "l5", "5[2]", "L5[2", "L5[-1]", ""])
def test_what_is_not_there_is_one_sentence(address):
    with pytest.raises(UserError) as error:
        find(address, PRUNED, "trace")
    assert str(error.value) == (
        f"there is no {address!r} in this trace: expected a layer from L1 to L5, or one of its atoms, such as L1[4]."
    )


def test_nothing_is_there_without_layers():
    with pytest.raises(UserError, match="there is no 'L0' in this trace: it has no layers"):
        find("L0", [], "trace")
