"""The page about bases is what its generator writes; library versions may be newer than the page."""

from tests.adapters.models_page import TESTED_WITH
from tests.bases.bases_page import PAGE, page


def test_the_page_on_disk_is_what_would_be_written():
    written, wanted = (
        [line for line in text.splitlines() if not line.startswith(TESTED_WITH)]
        for text in (PAGE.read_text(encoding="utf-8"), page())
    )
    assert written == wanted, "run: make bases"
