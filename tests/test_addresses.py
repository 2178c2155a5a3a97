"""Addresses point by the numbers atoms and layers carry, not by where they sit now."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from atomtune.addresses import find, split, written
from atomtune.errors import UserError

PRUNED = [(1, torch.tensor([4, 9])), (5, torch.tensor([0, 2, 7]))]


def test_an_address_is_by_number_and_id():
    assert find("L5", PRUNED, "adapter") == (1, None)
    assert find("L1[9]", PRUNED, "adapter") == (0, 1)
    assert find(" L5[2] ", PRUNED, "adapter") == (1, 1)


def test_several_atoms_of_a_layer_are_ranges_of_ids_as_in_python():
    """Atoms that were pruned away are not among them, and a part without any atom is not there."""
    assert find("L5[0:3]", PRUNED, "adapter") == (1, [0, 1])
    assert find("L5[2:]", PRUNED, "adapter") == (1, [1, 2])
    assert find("L5[:1, 7]", PRUNED, "adapter") == (1, [0, 2])
    assert find("L5[:]", PRUNED, "adapter") == (1, [0, 1, 2])
    assert find("L5[7:8]", PRUNED, "adapter") == (1, [2])


@given(st.sets(st.integers(0, 30), min_size=1))
def test_what_is_written_is_found_again_and_names_no_other_atom(ids):
    address = written(3, ids)
    _, rows = find(address, [(3, torch.arange(31))], "adapter")
    assert ([rows] if isinstance(rows, int) else rows) == sorted(ids)


def test_what_is_written_is_short():
    assert written(3, [7]) == "L3[7]"
    assert written(3, [52, *range(40), 60, 61]) == "L3[0:40,52,60:62]"
    assert written(3, None) == "L3"


def test_a_list_is_split_between_addresses_alone():
    assert split(" L17[137], L3[0:40,52],L5 ") == ["L17[137]", "L3[0:40,52]", "L5"]
    assert split(" ") == []


@pytest.mark.parametrize(
    "address",
    [
        "L5[1:2]",
        "L5[0,99]",
        "L5[2:0]",
        "L5[0;2]",
        "L5[]",
        "L5[,]",
        "L5[0:1:2]",
        "L0",
        "L1[0]",
        "L5[99]",
        "l5",
        "5[2]",
        "L5[2",
        "L5[-1]",
        "",
    ],
)
def test_what_is_not_there_is_one_sentence(address):
    with pytest.raises(UserError) as error:
        find(address, PRUNED, "trace")
    assert str(error.value) == (
        f"there is no {address!r} in this trace: "
        "expected a layer from L1 to L5, or atoms of one, such as L1[4] or L1[4:]."
    )


def test_nothing_is_there_without_layers():
    with pytest.raises(UserError, match="there is no 'L0' in this trace: it has no layers"):
        find("L0", [], "trace")
