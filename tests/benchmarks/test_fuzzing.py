"""A few hundred spoiled files of each kind; `python -m benchmarks.reliability --only fuzzing` reads thousands."""

import pytest

from benchmarks.reliability.fuzzing import Inputs, fuzz
from benchmarks.reliability.guided import KINDS


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    from tests.tiny_pixart import save_tiny_pixart

    folder = tmp_path_factory.mktemp("fuzzing")
    save_tiny_pixart(folder / "base")
    (folder / "inputs").mkdir()
    return Inputs(folder / "inputs")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_spoiled_file_is_read_or_refused_in_one_sentence(inputs, kind):
    strategy, read = inputs.kinds()[kind]
    found = fuzz(strategy, read, 200)
    assert found["read"] + found["refused"] >= 200
    assert found["read"] and found["refused"]


def test_all_kinds_are_tried(inputs):
    assert inputs.kinds().keys() == {*KINDS}
