"""The table on the how-to page is what the command prints."""

import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from atomtune.cli.plan import advice, tables
from atomtune.planning import plan_memory

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "plan.md"


@pytest.fixture(scope="module")
def flux():
    return plan_memory("black-forest-labs/FLUX.1-dev", 1024)


@pytest.mark.slow
def test_the_table_is_what_the_command_prints(flux):
    block = re.search(r"^```text\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert block is not None
    console = Console(file=io.StringIO(), width=118)
    for table in tables(flux):
        console.print(table)
    printed = console.file.getvalue().splitlines()  # pyright: ignore[reportAttributeAccessIssue]
    assert block[1].splitlines() == [line.rstrip() for line in printed]


@pytest.mark.slow
def test_flux_fits_24_gb_with_the_flags_that_are_named(flux):
    """Its denoiser alone has 22.2 GiB in bf16."""
    for adapter in flux.adapters:
        need, drawing = flux.fitting(adapter, 24), flux.drawing(adapter, 24)
        assert need is not None and need.way.flags == "--gradient-checkpointing --quantize int8"
        assert drawing is not None and drawing.way.quantize == "int8"
    train, draw, *_ = advice(flux, 24)
    assert "customize IMAGES" in train and train.endswith("--gradient-checkpointing --quantize int8")
    assert "generate OUT" in draw and "--quantize int8" in draw
