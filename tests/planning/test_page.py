"""The table on the how-to page is what the command prints."""

import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from atomtune.cli.plan import tables
from atomtune.planning import plan_memory

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "plan.md"


@pytest.mark.slow
def test_the_table_is_what_the_command_prints():
    block = re.search(r"^```text\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert block is not None
    console = Console(file=io.StringIO(), width=118)
    for table in tables(plan_memory("black-forest-labs/FLUX.1-dev", 1024)):
        console.print(table)
    printed = console.file.getvalue().splitlines()  # pyright: ignore[reportAttributeAccessIssue]
    assert block[1].splitlines() == [line.rstrip() for line in printed]
