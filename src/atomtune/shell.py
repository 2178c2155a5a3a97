"""Command lines that we print for people to type."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path


def command_line(*words: object) -> str:
    """A command of atomtune as the user's shell runs it: `command_line("inspect", out)` is `atomtune inspect runs/a`.

    It begins with `atomtune` where the shell finds the one that is running now, and else with the path of its script
    (`.venv/bin/atomtune`), or with `python -m atomtune` of this Python where there is no script.
    """
    return " ".join([_program(), *(shlex.quote(str(word)) for word in words)])


def _program() -> str:
    script = Path(sys.executable).with_name("atomtune")
    if (found := shutil.which("atomtune")) and (not script.exists() or Path(found).samefile(script)):
        return "atomtune"
    if not script.exists():
        return f"{shlex.quote(sys.executable)} -m atomtune"
    inside = script.is_relative_to(Path.cwd())
    return shlex.quote(os.path.relpath(script) if inside else str(script))
