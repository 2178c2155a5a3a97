"""What pages are made of: tables, claims with the rule that gives their verdict, and the generated part of a page.

A README says where its table goes with `<!-- results -->` … `<!-- /results -->`.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from atomtune.files import write_text

ROOT = Path(__file__).parent.parent.parent
DOCS = ROOT / "docs"
HOLDS, CONDITIONS, NOT_HERE = "holds", "holds under conditions", "does not hold here"
NO_DIFFERENCE = "no difference"


@dataclass
class Claim:
    """One row of docs/results/paper.md."""

    claim: str
    ours: str
    """Our numbers: mean ± standard deviation over the seeds, or mean and 95 % interval over the subjects."""
    rule: str
    """What must be seen for the claim to hold."""
    verdict: str
    paper: str = "–"
    """The paper's number, where it gives one."""
    item: str = ""
    """The table or figure that it is about, where an experiment has several."""
    brief: str = ""
    """Our main number alone, for the overview; needed of an item's first claim."""


def grade(*met: bool) -> str:
    """The verdict when the rule was met in these settings: all, some or none of them."""
    return HOLDS if all(met) else CONDITIONS if any(met) else NOT_HERE


def everywhere_less(lower: Iterable[float], higher: Iterable[float]) -> bool:
    """Whether one number is below the other on every seed."""
    return all(a < b for a, b in zip(lower, higher, strict=True))


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def fill(readme: Path, generated: str) -> None:
    """Put a generated part in its place in a README."""
    text = readme.read_text(encoding="utf-8")
    block = f"<!-- results -->\n\n{generated}\n\n<!-- /results -->"
    text, count = re.subn(r"<!-- results -->.*<!-- /results -->", lambda _: block, text, flags=re.DOTALL)
    assert count == 1, f"{readme} has no place for its results"
    write_text(readme, text)


def verdicts(claims: Iterable[Claim]) -> str:
    return "\n".join(f"- {c.claim}: {c.ours}. *Rule: {c.rule}.* **{c.verdict.capitalize()}.**" for c in claims)
