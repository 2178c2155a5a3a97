"""Write a file or a folder whole or not at all.

Everything is written under a temporary name beside its place and then renamed, so a kill leaves no half of anything, at
worst a `.tmp` that the next run removes.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from atomtune.errors import UserError

SUFFIX = ".tmp"


@contextlib.contextmanager
def atomic_folder(folder: str | Path) -> Iterator[Path]:
    """Yield a temporary folder that takes `folder`'s place at the end. Raises `UserError` when it cannot be written."""
    folder = Path(folder)
    temporary = folder.with_name(folder.name + SUFFIX)
    with _told(folder):
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            yield temporary
            remove_folder(folder)
            temporary.rename(folder)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


@contextlib.contextmanager
def atomic_file(file: str | Path) -> Iterator[Path]:
    """Yield a temporary path that takes `file`'s place at the end. Raises `UserError` when it cannot be written."""
    file = Path(file)
    temporary = file.with_name(SUFFIX + file.name)  # keeps the extension, by which writers choose the format
    with _told(file):
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            os.replace(temporary, file)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def write_text(file: str | Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with atomic_file(file) as temporary:
        temporary.write_text(text, encoding="utf-8")


def file_hash(*files: str | Path) -> str:
    """SHA-256 of the files' bytes, in order."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(Path(file).read_bytes())
    return digest.hexdigest()


def remove_folder(folder: Path) -> None:
    """Remove a folder so that a kill half-way leaves no folder of that name."""
    if folder.is_dir():
        doomed = folder.with_name(folder.name + ".old" + SUFFIX)
        shutil.rmtree(doomed, ignore_errors=True)
        folder.rename(doomed)
        shutil.rmtree(doomed)


def remove_leftovers(folder: Path) -> None:
    """Remove what killed runs left in `folder` under temporary names."""
    for leftover in (*folder.glob("*" + SUFFIX), *folder.glob(SUFFIX + "*")):
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()


def expanded(path: str | Path) -> Path:
    """The path with the home folder in place of `~` (as it is, where there is no such user)."""
    return Path(os.path.expanduser(path))


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(
            f"could not write {path} ({reason}): make room or choose another folder; nothing half-written was left."
        ) from error
