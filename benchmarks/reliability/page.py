"""docs/results/reliability.md, from what was counted."""

from pathlib import Path
from typing import Any

from atomtune.files import write_text

PAGE = Path(__file__).parents[2] / "docs" / "results" / "reliability.md"
HEAD = """\
# Nothing lost, no one let in

Written by `python -m benchmarks.reliability`; shorter versions of every part are in `make test`.
"""


def write(results: dict[str, Any]) -> None:
    """Write the page, with the parts that there are."""
    parts = [section(results[name]) for name, section in SECTIONS.items() if name in results]
    write_text(PAGE, "\n".join([HEAD, *parts]))


def _kills(found: dict[str, Any]) -> str:
    rows = [
        f"| {name} | {each['kills']} | {each['runs']} | {each['before_training']} | {each['while_writing']} | "
        + ", ".join(f"{code} ({count})" for code, count in each["exit_codes"].items())
        + " |"
        for name, each in found.items()
    ]
    return "\n".join([KILLS, *rows, ""])


KILLS = """\
## Stopped at random moments

`python -m benchmarks.reliability --only kills`

`atomtune customize` on a small PixArt-Σ of random weights: sixty steps, a checkpoint every fourth, samples, class
images, preserved prompts and a floor. Every start is stopped after a random share of the time that a whole run takes
(fixed seed) and started again, until the run is done. After every kill each complete checkpoint opened, no start
printed a traceback, and every run ended with the weights, the optimizer's state and the images of a run that was left
alone, to the bit. (Not listed in `atomtune-files.txt`, and so never removed, may be a log file of the tracker from a
start that was killed while it opened it: trackers choose the names themselves.)

| signal | kills | runs | before the first checkpoint | something half-written was left | exit codes |
|---|---|---|---|---|---|"""

SECTIONS = {"kills": _kills}
