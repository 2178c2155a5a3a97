"""The page about bases is what its generator writes; library versions may be newer than the page."""

import pytest

from tests.adapters.models_page import TESTED_WITH
from tests.bases.bases_page import PAGE, page, runs_for
from tests.bases.families import BASES


def test_the_page_on_disk_is_what_would_be_written():
    written, wanted = (
        [line for line in text.splitlines() if not line.startswith(TESTED_WITH)]
        for text in (PAGE.read_text(encoding="utf-8"), page())
    )
    assert written == wanted, "run: make bases"


def test_a_test_that_is_left_out_or_skipped_for_a_base_counts_as_not_run():
    first, second, third = BASES[:3]

    @pytest.mark.parametrize("base", [first, pytest.param(second, marks=pytest.mark.skip)])
    def some(base):
        """Shows something."""

    assert [runs_for(some, base) for base in (first, second, third)] == [True, False, False]
    assert not runs_for(pytest.mark.xfail(some), first)
