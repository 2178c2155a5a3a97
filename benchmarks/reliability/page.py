"""docs/results/reliability.md, from what was counted."""

from pathlib import Path
from typing import Any

import numpy as np

from atomtune.files import write_text
from benchmarks.reliability.precision import OTHERWISE

PAGE = Path(__file__).parents[2] / "docs" / "results" / "reliability.md"
HEAD = """\
# Nothing lost, no one let in

Written by `python -m benchmarks.reliability`; shorter versions are in `make test`, but for the precisions.
"""


def write(results: dict[str, Any]) -> None:
    """Write the page."""
    write_text(PAGE, text(results))


def text(results: dict[str, Any]) -> str:
    """The page, with the parts that there are."""
    parts = [section(results[name]) for name, section in SECTIONS.items() if name in results]
    return "\n".join([HEAD, *parts])


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


def _fuzzing(found: dict[str, Any]) -> str:
    return _inputs(FUZZING, found, peak=found["peak_gib"])


def _guided(found: dict[str, Any]) -> str:
    return _inputs(GUIDED, found, seconds=found["seconds"])


def _inputs(text: str, found: dict[str, Any], **more: Any) -> str:
    """A text with the number of all inputs, and below it a table with a row for each kind of them."""
    kinds = {name: counts for name, counts in found.items() if isinstance(counts, dict)}
    rows = [f"| {name} | {counts.get('read', 0):,} | {counts.get('refused', 0):,} |" for name, counts in kinds.items()]
    total = sum(sum(counts.values()) for counts in kinds.values())
    return "\n".join([text.format(total=total, **more), *rows, ""])


FUZZING = """\
## Files of strangers

`python -m benchmarks.reliability --only fuzzing`

{total:,} files that are right but for a few spoiled parts (values, shapes, types and numbers of weights, lines, bytes),
made by hypothesis with a fixed seed. Each was read, or refused with a `UserError`: no other exception, none that took
longer than 5 s of the processor, none that asked for 1 GiB more than there was; the whole process peaked at {peak} GiB,
with torch and the base in it. What was opened of adapters and LoRAs was also run once.

| kind | read | refused |
|---|---|---|"""


GUIDED = """\
### Guided by coverage

`pip install atheris`, then `python -m benchmarks.reliability --only guided`

The same kinds of files for {seconds} s each, {total:,} in all, with the same limits. Here atheris chooses: what reached
new lines of atomtune is changed further.

| kind | read | refused |
|---|---|---|"""


def _cells(found: dict[str, Any]) -> str:
    return CELLS.format(**found)


CELLS = """\
## Machines that are lost

`python -m benchmarks.reliability --only cells`

`atomtune sweep` with {cells} cells on a Ray cluster of two nodes, real processes on one computer. {killed} times a node
was killed with SIGKILL while both worked, and another one came. {came} results came, and the table has {rows} rows, of
{different} different cells.
"""


def _precision(found: dict[str, Any]) -> str:
    own = found["no"]
    rows = []
    for name in (name for name in ("no", OTHERWISE, "bf16", "fp16") if name in found):
        each = found[name]
        cells = [each["dtype"] + (f", {name}" if name == OTHERWISE else ""), str(len(each["loss"]))]
        for kind in ("loss", "held_loss"):
            more = np.log([one / other for one, other in zip(each[kind], own[kind])])
            mean, error = np.expm1(more.mean()), np.std(more, ddof=1) / np.sqrt(len(more))
            low, high = np.expm1([more.min(), more.max()])
            cells += [f"{np.mean(each[kind]):.5f}"]
            cells += ["–" if each is own else f"{mean:+.1%} ± {error:.1%} ({low:+.1%} to {high:+.1%})"]
        rows.append("| " + " | ".join(cells) + " |")
    same = "the same bytes" if found["same_bytes"] else "OTHER bytes"
    return "\n".join([PRECISION.format(steps=found["steps"], device=found["device"], same=same,
        before=np.mean(own["held_loss_before"])), *rows, ""])  # fmt: skip


PRECISION = """\
## Precisions

`python -m benchmarks.reliability --only precision`

moji learns the teapot for {steps} steps on a {device}, with the same images and noise in every precision. Its losses:
the running mean of training, and that on a few draws of noise that was not trained on ({before:.5f} without the
adapter). Beside float32: the geometric mean over the seeds (the mean of ratios that scatter is above 1, whichever is
divided by which), its standard error, and in brackets the lowest and the highest of a seed. Training is chaotic, so
float32 is compared with itself too, without oneDNN, whose convolutions and batched products round otherwise. Two runs
in float32 ended with {same}. On a CPU, fp16 has neither autocast nor a gradient scaler: the frozen base is stored and
computed in fp16; sums of matrix products are in float32, as on cards.

| base | seeds | training loss | beside float32 | held loss | beside float32 |
|---|---|---|---|---|---|"""

SECTIONS = {"kills": _kills, "cells": _cells, "fuzzing": _fuzzing, "guided": _guided, "precision": _precision}
