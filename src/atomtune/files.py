"""Write a file or a folder whole or not at all, and never delete the user's files.

Everything is written under a temporary name beside its place and then renamed, so a killed process leaves no incomplete
file, at worst a hidden `.atomtune-HOST-PID-RANDOM` that a later run removes. Symbolic links stay: the file that they
point to is written.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import platform
import re
import secrets
import shutil
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from atomtune.errors import UserError

_HOST = f"{zlib.crc32(platform.node().encode()):08x}"
_TEMPORARY = re.compile(rf"\.atomtune-{_HOST}-(\d+)-[0-9a-f]{{8}}(\..*)?", re.DOTALL)
_in_use: set[Path] = set()
"""Temporary paths of this process, to tell them from those of a killed process that had the same number."""


@contextlib.contextmanager
def atomic_folder(folder: str | Path, seal: str | None = None) -> Iterator[Path]:
    """Yield a temporary folder whose files take their places in `folder` at the end; other files in `folder` stay.

    A new folder appears whole. In one that is there, each file is replaced whole; `seal` names the file without which
    the folder cannot be opened: it is removed first and written last, so no mixture of old and new files can be
    opened. Raises `UserError` when it cannot be written.
    """
    folder = real_path(folder)
    remove_leftovers(folder.parent)
    with _reporting(folder), temporary_beside(folder) as temporary:
        temporary.mkdir(parents=True)
        mode = temporary.stat().st_mode & 0o666  # the umask's: safetensors makes files that only their owner can read
        try:
            yield temporary
        except UserError as error:  # name the folder that the caller knows
            raise UserError(str(error).replace(str(temporary), str(folder))) from error
        for file in _files(temporary):
            file.chmod(mode)
        if folder.exists():
            _move_into(folder, temporary, seal)
        else:
            temporary.rename(folder)


def _move_into(folder: Path, temporary: Path, seal: str | None) -> None:
    files = sorted(_files(temporary), key=lambda file: file == temporary / (seal or ""))
    places = {file: real_path(folder / file.relative_to(temporary)) for file in files}
    for place in places.values():
        if place.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(place))
    if seal is not None:
        real_path(folder / seal).unlink(missing_ok=True)
    for file, place in places.items():
        place.parent.mkdir(parents=True, exist_ok=True)
        if place.parent.stat().st_dev == file.stat().st_dev:
            os.replace(file, place)
        else:  # through a link to another disk
            with atomic_file(place) as beside:
                shutil.copyfile(file, beside)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


@contextlib.contextmanager
def atomic_file(file: str | Path) -> Iterator[Path]:
    """Yield a temporary path that takes `file`'s place at the end. Raises `UserError` when it cannot be written."""
    file = real_path(file)
    with _reporting(file), temporary_beside(file) as temporary:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)
        os.replace(temporary, file)


def write_text(file: str | Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with atomic_file(file) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_once(folder: str | Path, name: str, content: bytes) -> Path:
    """Write `content` to `folder`/SHA-256/`name`, and return that path. What is there already is not written again, so
    that a reader always finds the whole file; it only becomes new, for whoever removes old files."""
    file = Path(folder) / hashlib.sha256(content).hexdigest() / name
    try:
        os.utime(file)
    except FileNotFoundError:
        with atomic_file(file) as temporary:
            temporary.write_bytes(content)
    return file


def read_prompts(file: str | Path) -> list[str]:
    """One prompt a line; empty lines are left out. Raises `UserError`, also if there is none."""
    try:
        # `splitlines` would also split at U+2028 and its like, inside a prompt.
        lines = [line.strip() for line in Path(file).read_text(encoding="utf-8-sig").split("\n")]
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise UserError(f"the prompts file {file} could not be read ({reason}): expected one prompt a line.") from error
    if not any(lines):
        raise UserError(f"the prompts file {file} is empty: expected one prompt a line.")
    return [line for line in lines if line]


def cache_folder() -> Path:
    """Where what takes long to compute is kept between runs: $ATOMTUNE_CACHE, or ~/.cache/atomtune."""
    return expanded(os.environ.get("ATOMTUNE_CACHE") or "~/.cache/atomtune")


def file_hash(*files: str | Path) -> str:
    """SHA-256 of the files' bytes, in order."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(Path(file).read_bytes())
    return digest.hexdigest()


def real_path(path: str | Path) -> Path:
    """`path` with every link resolved. Raises `UserError` for a link whose target does not exist."""
    path = Path(path)
    for link in (path, *path.parents):
        if link.is_symlink() and not link.exists():
            raise UserError(
                f"{link} is a link to {os.readlink(link)}, which does not exist: create that, or remove the link."
            )
    return Path(os.path.realpath(path))


def refuse_output(out: str | Path, *inputs: str | Path) -> None:
    """Raise `UserError` when `out` cannot be a folder to write into, or contains one of the `inputs` (or is it)."""
    place = real_path(out)
    there = next(folder for folder in (place, *place.parents) if folder.exists())
    if not there.is_dir():
        raise UserError(f"{out} cannot be a folder, because {there} is a file: choose another folder.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"{there} cannot be written by this user: choose another folder.")
    for given in map(Path, inputs):
        if place.exists() and given.exists():
            inside = Path(os.path.realpath(given))
            if any(folder.samefile(place) for folder in (inside, *inside.parents)):
                raise UserError(f"the output {out} contains the input {given}: choose another folder for the output.")


def remove(files: Iterable[Path], folders: Iterable[Path]) -> None:
    """Remove `files` in this order, except links, then those of `folders` that are empty, inner ones first."""
    for file in files:
        if file.is_file() and not file.is_symlink():
            file.unlink()
    for folder in sorted(folders, key=lambda folder: len(folder.parts), reverse=True):
        with contextlib.suppress(OSError):  # not empty, a link, or gone
            folder.rmdir()


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes of this machine left in `folder` under temporary names."""
    from psutil import pid_exists

    for leftover in folder.glob(".atomtune-*"):
        found = _TEMPORARY.fullmatch(leftover.name)
        if found is None or Path(os.path.realpath(leftover)) in _in_use:
            continue
        if int(found[1]) == os.getpid() or not pid_exists(int(found[1])):
            _remove(leftover)


def expanded(path: str | Path) -> Path:
    """The path with the home folder in place of `~` (unchanged if there is no such user)."""
    return Path(os.path.expanduser(path))


@contextlib.contextmanager
def temporary_beside(place: Path) -> Iterator[Path]:
    """Yield a name beside `place` that no other process uses. A file or folder of that name is removed at the end.

    The name keeps the extension, by which writers choose the format, and nothing else of a name that may be very long.
    """
    temporary = place.with_name(f".atomtune-{_HOST}-{os.getpid()}-{secrets.token_hex(4)}{place.suffix}")
    _in_use.add(temporary)
    try:
        yield temporary
    finally:
        _remove(temporary)
        _in_use.discard(temporary)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def _reporting(path: Path) -> Iterator[None]:
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(
            f"could not write {path} ({reason}): make room or choose another folder; nothing half-written was left."
        ) from error
