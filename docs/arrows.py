"""Lines and import arrows of a checkout, for docs/architecture.md: `python docs/arrows.py [FOLDER]` (src/atomtune)."""

import ast
import sys
from collections import defaultdict
from graphlib import CycleError, TopologicalSorter
from pathlib import Path


def main(root: Path) -> None:
    files = {
        ".".join(file.relative_to(root.parent).with_suffix("").parts).removesuffix(".__init__"): file
        for file in sorted(root.rglob("*.py"))
    }
    arrows = {name: imports(file, files) - {name, "atomtune"} for name, file in files.items() if "." in name}
    lines, pieces = defaultdict(int), defaultdict(set)
    for name, file in files.items():
        piece = [*name.split("."), ""][1]
        lines[piece] += len(file.read_text(encoding="utf-8").splitlines())
        pieces[piece] |= {other.split(".")[1] for other in arrows.get(name, ())} - {piece}
    print(
        f"{sum(lines.values()):,} lines in {len(files)} modules, {sum(map(len, arrows.values()))} arrows between them;",
        end=" ",
    )
    try:
        tuple(TopologicalSorter(arrows).static_order())
        print("no circle.\n")
    except CycleError as error:
        print(f"a circle: {' → '.join(error.args[1])}.\n")
    for piece in sorted(pieces.keys() - {""}):
        print(f"    {piece:22}{lines[piece]:>6,}  → {', '.join(sorted(pieces[piece])) or '–'}")


def imports(file: Path, files: dict[str, Path]) -> set[str]:
    """The modules that a file imports, also inside functions and for type checkers alone."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {name if name in files else str(node.module) for name in names}
    return found & files.keys()


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "src/atomtune"))
