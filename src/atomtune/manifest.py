"""The list of the files that atomtune wrote into a folder, so that it removes and replaces no others.

`atomtune-files.txt` has one line for each file, or for each new folder (with a slash at the end), relative to the
folder of the list. A file is listed before it is written, so a killed process leaves no unlisted file.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from atomtune.errors import UserError
from atomtune.files import real_path, remove, temporary_beside, write_text

NAME = "atomtune-files.txt"
HEAD = "# What atomtune wrote here. Starting over (--overwrite) removes these files and no others."


def written(folder: Path) -> set[str]:
    """The entries of the list in `folder`; none without a list. Raises `UserError` if atomtune did not write the
    list."""
    file = folder / NAME
    if not file.is_file():
        return set()
    try:
        head, *entries = file.read_text(encoding="utf-8").splitlines() or [""]
    except UnicodeDecodeError:
        head, entries = "", []
    if head != HEAD or any(Path(entry).is_absolute() or ".." in Path(entry).parts for entry in entries):
        raise UserError(f"{file} is not a list that atomtune wrote: move it, or choose another folder.")
    return set(entries)


def record(folder: Path, *paths: Path) -> None:
    """List `paths`, which are about to be written into `folder`, and the folders that this will make.

    Listed files that no longer exist are taken off the list: a new file of that name would not be atomtune's.
    """
    new = {_entry(folder, path) for path in paths}
    for path in paths:
        inside = [parent for parent in path.parents if parent != folder and parent.is_relative_to(folder)]
        new |= {_entry(folder, parent) + "/" for parent in inside if not parent.exists()}
    old = written(folder)
    kept = {entry for entry in old if (folder / entry).exists()}
    if new | kept != old:
        write_text(folder / NAME, "\n".join([HEAD, *sorted(new | kept)]) + "\n")


def refuse_foreign(folder: Path, *patterns: str) -> None:
    """Raise `UserError` if something in `folder` that matches one of the glob patterns is not in its list."""
    known = written(folder)
    for path in (path for pattern in patterns for path in sorted(folder.glob(pattern))):
        if _entry(folder, path) not in known:
            raise UserError(
                f"{path} exists already, and is not in the list of files that atomtune wrote ({NAME}): move it, or "
                "choose another folder."
            )


def refuse_links(folder: Path) -> None:
    """Raise `UserError` if a listed file has become a link: atomtune does not remove what a link points to."""
    for entry in sorted(written(folder)):
        if not entry.endswith("/") and (folder / entry).is_symlink():
            raise UserError(f"{folder / entry} is a link, which atomtune does not remove: remove it yourself first.")


def clear(folder: Path) -> None:
    """Remove the listed files, then the listed folders that are empty, and the list."""
    folders = [folder / entry for entry in written(folder) if entry.endswith("/")]
    remove([folder / entry for entry in _files(folder)], folders)


@contextlib.contextmanager
def set_aside(folder: Path) -> Iterator[None]:
    """Clear `folder` while the block runs. If the block raises, its files are removed and the old files restored."""
    with temporary_beside(real_path(folder / NAME)) as aside:
        files = [entry for entry in _files(folder) if (folder / entry).is_file()]
        try:
            for entry in files:
                _move(folder / entry, aside / entry)
            remove([], [folder / entry for entry in (written(aside) if files else ()) if entry.endswith("/")])
            yield
        except BaseException:
            if not files or (aside / NAME).is_file():  # the list moves last: before that nothing new is written
                clear(folder)
            for entry in reversed(files):
                if (aside / entry).is_file():
                    _move(aside / entry, folder / entry)
            raise


def _move(file: Path, place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(file, place)


def _files(folder: Path) -> list[str]:
    """The listed files and the list, in the order of their removal, so that a killed process leaves no run that looks
    complete: JSON first, without which nothing can be opened, the run's config.yaml and the list last."""
    files = sorted(entry for entry in written(folder) if not entry.endswith("/"))
    return [*sorted(files, key=lambda entry: (entry == "config.yaml", not entry.endswith(".json"))), NAME]


def _entry(folder: Path, path: Path) -> str:
    return path.relative_to(folder).as_posix() + ("/" if path.is_dir() else "")
