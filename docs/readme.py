"""Copy the demo's grid and table into the README and inspect its adapter: `make readme`. No number typed by hand."""

import json
import re
import shutil
import sys
from pathlib import Path

from atomtune import cli
from atomtune.cli.demo import HEADS, table

ROOT = Path(__file__).parent.parent


def markdown(summary: dict) -> str:
    """The demo's table as the terminal shows it, in Markdown."""
    methods = [method for method in HEADS if method in summary]
    lines = [f"| | {' | '.join(HEADS[method] for method in methods)} |", "|---|" + "--:|" * len(methods)]
    lines += [f"| {label} | {' | '.join(values)} |" for label, values in table(summary, methods)]
    return "\n".join(lines)


def main(run: Path) -> None:
    summary = json.loads((run / "demo.json").read_text(encoding="utf-8"))
    shutil.copyfile(run / "grid.png", ROOT / "docs" / "demo.png")
    prompts = run / "prompts.txt"
    prompts.write_text("\n".join(summary["prompts"]), encoding="utf-8")
    cli.main(["inspect", str(run), "--prompts", str(prompts), "--out", str(ROOT / "docs" / "report.html")])
    readme = ROOT / "README.md"
    marked = re.compile("(?<=<!-- demo -->\n).*?(?=<!-- /demo -->)", re.DOTALL)
    readme.write_text(
        marked.sub(lambda _: markdown(summary) + "\n", readme.read_text(encoding="utf-8")), encoding="utf-8"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
