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
PICTURES = {  # file: the width of the window, and from the top of one element to the bottom of another
    "inspect-head.png": (1280, ".top", "#map"),
    "inspect-atoms.png": (1280, ".cards .card:nth-child(1)", ".cards .card:nth-child(3)"),
    "inspect-head-phone.png": (400, ".top", ".shown"),
    "inspect-atoms-phone.png": (400, "#h-atoms", ".cards .card:nth-child(1)"),
}


def main() -> None:
    with tempfile.TemporaryDirectory() as profile, chromium(profile) as browser:
        for name, (width, *ends) in PICTURES.items():
            set_width(browser, width)
            browser.get((DOCS / "report.html").as_uri())
            top, bottom = (
                browser.execute_script(
                    f"const box = document.querySelector(arguments[0]).getBoundingClientRect();"
                    f"return window.scrollY + box.{edge}",
                    end,
                )
                for edge, end in zip(("top", "bottom"), ends)
            )
            clip = {"x": 0, "y": top - 12, "width": width, "height": bottom - top + 24, "scale": 1}
            options = {"format": "png", "captureBeyondViewport": True, "clip": clip}
            shot = base64.b64decode(browser.execute_cdp_cmd("Page.captureScreenshot", options)["data"])
            Image.open(io.BytesIO(shot)).convert("RGB").save(DOCS / "how-to" / name, optimize=True)


if __name__ == "__main__":
    main()
