"""Measure how long a person waits after turning a dial of the studio: `python -m tests.studio.latency [TIMES]`.

From the key to the image on the page, in a real browser, on moji with 20 steps, for the draft and for the whole image;
and the CPU time of the studio, which is what counts on a machine that does nothing else. Writes the numbers, with the
machine and its load, into docs/studio.md.
"""

from __future__ import annotations

import os
import platform
import re
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil

from tests.browser import chromium
from tests.studio.driving import Page, studio

PAGE = Path(__file__).parents[2] / "docs" / "studio.md"
TIMES = 30
WHAT = ("a draft of 5 steps", "the whole image, 20 steps", "of this, CPU time of the studio for both")


def measure(page: Page, process: psutil.Process, times: int) -> tuple[list[float], list[float], list[float]]:
    """Seconds to the draft and to the image, and those that the studio computed for both, for so many densities that
    were not drawn before."""
    page.tab("Steer")
    page.press("Draw")
    page.until_said("Drawn in")
    drafts, images, computed = [], [], []
    for number in range(times):
        field = page.focus("Density")
        page.browser.execute_script("arguments[0].select()", field)
        start, before = time.perf_counter(), process.cpu_times().user
        density = f"{0.2 + 0.015 * number:.3g}"  # each with another number of atoms a token in some layer
        drawn = rf"Drawn in .*density {density}\."
        field.send_keys(f"{density}\t")
        page.until_said(f"Draft of 5 steps|{drawn}")
        drafts.append(time.perf_counter() - start)
        page.until_said(drawn)
        images.append(time.perf_counter() - start)
        computed.append(process.cpu_times().user - before)
        time.sleep(0.5)
    return drafts, images, computed


def main(times: int = TIMES) -> None:
    with tempfile.TemporaryDirectory() as folder, studio(Path(folder) / "runs") as server:
        Path(folder, "profile").mkdir()
        with chromium(Path(folder) / "profile") as browser:
            before = os.getloadavg()[0]
            found = measure(Page(browser, server.url), psutil.Process(server.process.pid), times)
    rows = [
        f"| {what} | {np.median(seconds):.2f} s | {np.quantile(seconds, 0.95):.2f} s |"
        for what, seconds in zip(WHAT, found)
    ]
    threads = os.environ.get("OMP_NUM_THREADS")
    machine = f"{os.cpu_count()} cores ({platform.machine()}), load {before:.1f}"
    machine += f", {threads} threads of torch" if threads else ""
    table = "\n".join(["| from the key to | median | 95th percentile |", "| --- | --- | --- |", *rows])
    text = (
        f"<!-- latency -->\n\n{table}\n\n{times} settings of the density, {machine}, in Chromium.\n\n<!-- /latency -->"
    )
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(re.sub("<!-- latency -->.*<!-- /latency -->", text, page, flags=re.DOTALL), encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
