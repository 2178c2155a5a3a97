"""One studio and one browser for the tests of this folder."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.browser import browser_paths, chromium
from tests.studio.driving import Page, Server, studio


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("studio")
    threads = str(torch.get_num_threads())  # as many as here: the last bits of images depend on it
    with studio(folder / "runs", OMP_NUM_THREADS=threads) as running:
        yield running
        assert not [*running.cache.glob("*/image.*")]  # gradio wrote none, which is not atomic: see Workspace.picture
    log = running.log.read_text()
    assert "Traceback" not in log, log  # no handler failed without a sentence


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if browser_paths() is None:
        pytest.skip("no browser: chromium and chromedriver are missing")
    with chromium(tmp_path_factory.mktemp("profile")) as browser:
        browser.set_script_timeout(60)
        yield browser


@pytest.fixture
def page(server, browser) -> Iterator[Page]:
    """The page as it opens. Nothing but the studio is asked for anything, and the console stays without errors."""
    page = Page(browser, server.url)
    page.asked()
    browser.get_log("browser")
    yield page
    assert page.asked() <= {server.url}
    severe = [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    assert not severe, json.dumps(severe, indent=1)


@pytest.fixture(scope="session")
def screenshots(pytestconfig) -> Path:
    folder = Path(pytestconfig.getoption("--screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder
