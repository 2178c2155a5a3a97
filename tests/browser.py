"""A headless Chromium, for pages as a person sees them. Debian's packages chromium and chromium-driver."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)


def browser_paths() -> tuple[str, str] | None:
    """The browser and its driver; None where either is missing."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    return (browser, driver) if browser and driver else None


@contextmanager
def chromium(profile: Any) -> Iterator[Any]:
    """Selenium's driver of a browser whose profile is the empty folder `profile`; its console is kept."""
    from selenium import webdriver

    paths = browser_paths()
    assert paths is not None, "chromium and chromedriver are not installed"
    options = webdriver.ChromeOptions()
    options.binary_location = paths[0]
    for flag in (*FLAGS.split(), f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(paths[1]))
    try:
        yield driver
    finally:
        driver.quit()


def set_width(browser: Any, width: int, height: int = 900) -> None:
    """A window narrower than a desktop's smallest needs the tools for developers."""
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
