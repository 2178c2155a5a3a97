"""Copy the demo's grid for the README and inspect the demo's adapter: part of `make readme`."""

import shutil
import sys
from pathlib import Path

from atomtune import cli
from atomtune.shipped import IMAGES

DOCS = Path(__file__).parent


def main(run: Path) -> None:
    shutil.copyfile(run / "grid.png", DOCS / "demo.png")
    cli.main(["inspect", str(run), "--prompts", str(IMAGES / "prompts.txt"), "--out", str(run / "report.html")])
    shutil.copyfile(run / "report.html", DOCS / "report.html")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
