"""A real studio in a process of its own, and what a person does on its page, in a real Chromium."""

from __future__ import annotations

import base64
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.browser import set_width

WAIT = 300
"""Seconds until a page is given up, on a busy machine."""


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@contextmanager
def studio(workspace: Path, *runs: Path, port: int | None = None, **environment: str) -> Iterator[Server]:
    """`atomtune studio` on a free port, until the end of the block."""
    port = port or free_port()
    words = [
        sys.executable,
        "-m",
        "atomtune",
        "studio",
        *map(str, runs),
        "--port",
        str(port),
        "--workspace",
        str(workspace),
    ]
    workspace = workspace.resolve()
    log = (workspace.parent / f"studio-{port}.log").open("w")
    process = subprocess.Popen(
        list(map(str, words)),
        stdout=log,
        stderr=subprocess.STDOUT,
        env=os.environ | {"GRADIO_SHARE": "True"} | environment,
        cwd=workspace.parent,
    )
    try:
        wait(lambda: "The studio is at" in Path(log.name).read_text() or process.poll() is not None, 600)
        assert process.poll() is None, Path(log.name).read_text()
        yield Server(process, port, Path(log.name), workspace)
    finally:
        process.terminate()
        process.wait(300)
        log.close()


class Server:
    def __init__(self, process: subprocess.Popen, port: int, log: Path, workspace: Path) -> None:
        self.process, self.port, self.log, self.workspace = process, port, log, workspace
        self.url, self.cache = f"http://127.0.0.1:{port}", workspace / ".studio" / "cache"


def wait(until: Callable[[], Any], seconds: float = WAIT) -> Any:
    """What `until` returns, as soon as it is true."""
    end = time.monotonic() + seconds
    while not (found := until()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
    return found


class Page:
    """The page of a studio in a browser."""

    def __init__(self, browser: Any, url: str, dark: bool = False) -> None:
        self.browser, self.url = browser, url
        # A window that is not in front gets no focus events, as nobody types in it; here every window is typed in.
        browser.execute_cdp_cmd("Emulation.setFocusEmulationEnabled", {"enabled": True})
        browser.get(f"{url}/?__theme={'dark' if dark else 'light'}")
        wait(lambda: browser.find_elements("css selector", "button[role=tab]"))

    def tab(self, name: str) -> None:
        """Open a tab, by its name."""

        def press() -> bool:
            for button in self.browser.find_elements("css selector", "button[role=tab]"):
                if button.text.strip() == name:
                    self.browser.execute_script("arguments[0].click()", button)
                    return button.get_attribute("aria-selected") == "true"
            return False

        wait(press)
        self.name = name

    @property
    def panel(self) -> Any:
        """The open tab's content."""
        return next(p for p in self.browser.find_elements("css selector", "[role=tabpanel]") if p.is_displayed())

    def labelled(self, label: str) -> Any:
        """The input of this label in the open tab, as a screen reader finds it."""
        script = """
            const [panel, label] = arguments;
            const labels = e => e.labels && [...e.labels].map(l => l.textContent).join(' ');
            const name = e => (e.getAttribute('aria-label') || labels(e) || '').trim().replace(/\\s+/g, ' ');
            const found = [...panel.querySelectorAll('input, textarea, select')].filter(e => e.offsetParent);
            const own = [label, 'number input for ' + label];
            return found.find(e => own.includes(name(e))) || found.find(e => name(e).startsWith(label)) || null;"""
        return wait(lambda: self.browser.execute_script(script, self.panel, label), 10)

    def focus(self, label: str) -> Any:
        """The input of this label, in sight and with the keyboard's focus."""

        def focused() -> Any:
            field = self.labelled(label)  # again, because the page may draw it anew
            self.browser.execute_script("arguments[0].scrollIntoView({block: 'center'}); arguments[0].focus()", field)
            return field if field.is_displayed() and self.browser.switch_to.active_element == field else None

        return wait(focused, 10)

    def write(self, label: str, text: Any) -> None:
        """Type into the field of this label, as a person does with the keyboard."""
        from selenium.webdriver.common.keys import Keys

        field = self.focus(label)
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(str(text))
        field.send_keys(Keys.TAB)

    def choose(self, label: str, choice: str) -> None:
        """Choose from a list, with the keyboard."""
        from selenium.webdriver import ActionChains
        from selenium.webdriver.common.keys import Keys

        def options(which: str) -> list[str]:
            script = "return [...arguments[0].querySelectorAll('[role=listbox] ' + arguments[1])].map(e => e.ariaLabel)"
            return self.browser.execute_script(script, self.panel, which)

        field = self.focus(label)
        wait(lambda: choice in options("li"), 30)  # the list is renewed now and then
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(choice)
        wait(lambda: options(".active") == [choice], 10)
        field.send_keys(Keys.ENTER)
        time.sleep(0.3)  # a Tab within some milliseconds would come before what Enter does
        ActionChains(self.browser).send_keys(Keys.TAB).perform()

    def drop(self, *files: Path) -> None:
        """Give files to the tab's field for them."""
        field, *_ = wait(lambda: self.panel.find_elements("css selector", "input[type=file]"))
        field.send_keys("\n".join(map(str, files)))

    def press(self, text: str) -> None:
        """Press the button of this text in the open tab."""

        def find() -> Any:
            for button in self.panel.find_elements("css selector", "button"):
                if button.text.strip() == text and button.is_displayed():
                    return button
            return None

        self.browser.execute_script("arguments[0].click()", wait(find, 10))

    @property
    def said(self) -> str:
        """The tab's status line."""
        # In one go, because the page may draw a line anew meanwhile.
        script = "return [...arguments[0].querySelectorAll('.status [role=status]')].map(line => line.innerText)"
        return " ".join(self.browser.execute_script(script, self.panel)).strip()

    def until_said(self, pattern: str, seconds: float = WAIT) -> str:
        """The status line, as soon as it matches."""
        end = time.monotonic() + seconds
        while not re.search(pattern, now := self.said):
            assert time.monotonic() < end, f"the page says {now!r}, not {pattern!r}"
            time.sleep(0.05)
        return now

    @property
    def cells(self) -> list[str]:
        """What stands in the cells of the tab's tables."""
        script = "return [...arguments[0].querySelectorAll('[data-testid^=cell-]')].map(cell => cell.innerText.trim())"
        return self.browser.execute_script(script, self.panel)

    def picture(self, alt: str) -> Any:
        """The image of this alternative text; None while it is not there."""
        for image in self.panel.find_elements("css selector", "img"):
            if image.get_attribute("alt") == alt and image.is_displayed():
                return image
        return None

    def pixels(self, alt: str) -> np.ndarray:
        """The pixels of an image, as the browser has them."""
        script = """
            const image = arguments[0], done = arguments[1], draw = () => {
                const canvas = document.createElement('canvas');
                canvas.width = image.naturalWidth; canvas.height = image.naturalHeight;
                canvas.getContext('2d').drawImage(image, 0, 0); done(canvas.toDataURL('image/png')); };
            image.complete ? draw() : image.onload = draw;"""
        import io

        image = wait(lambda: self.picture(alt))
        data = self.browser.execute_async_script(script, image).partition(",")[2]
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))

    def click_at(self, alt: str, x: float, y: float) -> None:
        """Click at a place of an image, in shares of its width and height."""
        from selenium.webdriver import ActionChains

        image = wait(lambda: self.picture(alt))
        self.browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", image)
        box = image.rect
        offset = (int((x - 0.5) * box["width"]), int((y - 0.5) * box["height"]))
        ActionChains(self.browser).move_to_element_with_offset(image, *offset).click().perform()

    def screenshot(self, file: Path, width: int = 1280) -> Path:
        """The whole page, as high as it is."""
        set_width(self.browser, width)
        time.sleep(0.6)
        loaded = "return [...document.images].filter(i => i.offsetParent).every(i => i.complete && i.naturalWidth > 0)"
        wait(lambda: self.browser.execute_script(loaded), 30)
        height = self.browser.execute_script("return document.documentElement.scrollHeight")
        set_width(self.browser, width, min(height, 4000))
        time.sleep(0.4)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(base64.b64decode(self.browser.execute_cdp_cmd("Page.captureScreenshot", {})["data"]))
        set_width(self.browser, width)
        return file

    def asked(self) -> set[str]:
        """Every origin that the browser asked for something since the last call, by its network log."""
        found = set()
        for entry in self.browser.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                address = message["params"]["request"]["url"]
                if not address.startswith(("data:", "blob:")):
                    found.add("/".join(address.split("/")[:3]))
        return found
