"""Three users at once for a long time: memory stays flat."""

import itertools
import json
import time

import psutil
import pytest

from tests.studio.driving import Page

USERS = 3
WARM = 0.2
"""Share of the time after which memory is compared: caches fill first."""
FLAT = 0.05


@pytest.mark.studio
def test_memory_stays_flat_with_three_users(server, browser, screenshots, pytestconfig):
    """Each user has a window, and turns dials and looks at atoms. The mean memory of the last fifth of the time is
    within 5 % of that of the second fifth: in the first the caches fill."""
    minutes, process = pytestconfig.getoption("--soak-minutes"), psutil.Process(server.process.pid)
    pages = []
    for number in range(USERS):
        if number:
            browser.switch_to.new_window("tab")
        page = Page(browser, server.url)
        page.tab("Look")
        page.write("Sampling steps", 6)
        page.tab("Steer")
        page.write("Sampling steps", 6)
        pages.append((page, browser.current_window_handle))
    start, memory, done = time.monotonic(), [], 0
    for turn in itertools.count():
        if (elapsed := time.monotonic() - start) > 60 * minutes:
            break
        for number, (page, handle) in enumerate(pages):  # all ask, then all are looked at: they draw at once
            browser.switch_to.window(handle)
            page.tab("Look" if turn % 5 == 4 else "Steer")
            if turn % 5 == 4:
                page.write("Seed", turn * USERS + number)
                page.press("Draw")
                page.until_said("Drawing")
            else:
                page.write("Density", round(0.01 + 0.001 * ((turn * USERS + number) % 90), 3))
        for number, (page, handle) in enumerate(pages):
            browser.switch_to.window(handle)
            density = f"{round(0.01 + 0.001 * ((turn * USERS + number) % 90), 3):g}"
            page.until_said("Without it the image" if turn % 5 == 4 else f"Drawn in .*density {density}")
            done += 1
        memory.append((elapsed, process.memory_info().rss))
    span = memory[-1][0]

    def mean(first: float, last: float) -> float:
        own = [bytes for seconds, bytes in memory if first * span <= seconds <= last * span]
        return sum(own) / len(own)

    early, late = mean(WARM, 2 * WARM), mean(1 - WARM, 1)
    numbers = {"minutes": minutes, "users": USERS, "images": done, "early_mb": early / 1e6, "late_mb": late / 1e6}
    (screenshots / "soak.json").write_text(json.dumps(numbers | {"growth": late / early - 1}, indent=1) + "\n")
    assert abs(late / early - 1) <= FLAT, numbers
