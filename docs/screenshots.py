"""Photograph the report of the demo's adapter for the documentation: part of `make readme`."""

import base64
import io
import sys
import tempfile
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.browser import chromium, set_width

DOCS = Path(__file__).parent
WIDTH = 1280
PICTURES = {  # file: from the top of one element to the bottom of another
    "inspect-head.png": (".top", "#map"),
    "inspect-atoms.png": (".cards .card:nth-child(1)", ".cards .card:nth-child(3)"),
}


def main() -> None:
    with tempfile.TemporaryDirectory() as profile, chromium(profile) as browser:
        set_width(browser, WIDTH)
        browser.get((DOCS / "report.html").as_uri())
        for name, ends in PICTURES.items():
            top, bottom = (
                browser.execute_script(
                    f"const box = document.querySelector(arguments[0]).getBoundingClientRect();"
                    f"return window.scrollY + box.{edge}",
                    end,
                )
                for edge, end in zip(("top", "bottom"), ends)
            )
            clip = {"x": 0, "y": top - 12, "width": WIDTH, "height": bottom - top + 24, "scale": 1}
            options = {"format": "png", "captureBeyondViewport": True, "clip": clip}
            shot = base64.b64decode(browser.execute_cdp_cmd("Page.captureScreenshot", options)["data"])
            Image.open(io.BytesIO(shot)).convert("RGB").save(DOCS / "how-to" / name, optimize=True)


if __name__ == "__main__":
    main()
