"""The caption of each image of a folder, and the captions that belong to no image.

For `a.png`, the first of these that exists: its row in `metadata.jsonl` or `metadata.csv` (columns `file_name` and
`text`, as in Hugging Face's imagefolder), `a.png.txt`, `a.png.caption`, `a.txt`, `a.caption` (endings in upper or
lower case), else the default. All are UTF-8, with or without a byte order mark.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from atomtune.errors import UserError
from atomtune.parsing import parse_json
from atomtune.training.config import refuse_angle_brackets

SUFFIXES = (".txt", ".caption")


@dataclass
class Captions:
    """The caption of each image, and captions that need a warning."""

    of: dict[Path, str]
    differing: list[str] = field(default_factory=list)
    """Images with two captions that are not the same."""
    without_image: list[str] = field(default_factory=list)
    """Caption files and rows of metadata whose image does not exist."""


def read_captions(images: list[Path], default: str) -> Captions:
    """The captions of images of one folder. Raises `UserError` naming the file (and line) that is wrong."""
    folder = images[0].parent
    rows = [(file, name, text) for file in _metadata_files(folder) for name, text in _rows(file)]
    texts = [file for file in sorted(folder.iterdir()) if is_caption(file) and file.name not in METADATA]
    found = Captions({})
    for image in images:
        candidates = [(file, text) for file, name, text in rows if folder / name == image]
        candidates += [(file, _read_text(file).strip()) for file in _beside(image, texts)]
        caption = found.of[image] = candidates[0][1] if candidates else default
        if not caption:
            raise UserError(f"the caption of {image} is empty: write one, or remove it to get {default!r}.")
        refuse_angle_brackets(caption)
        if others := [file.name for file, text in candidates[1:] if text != caption]:
            found.differing.append(f"{image.name} ({candidates[0][0].name} is used, not {', '.join(others)})")
    used = {file for image in images for file in _beside(image, texts)}
    found.without_image = [file.name for file in texts if file not in used]
    found.without_image += [f"{name!r} in {file.name}" for file, name, _ in rows if folder / name not in found.of]
    return found


def is_caption(file: Path) -> bool:
    """Whether a file, by its name, holds captions."""
    name_fits = file.name in METADATA or (file.suffix.lower() in SUFFIXES and not file.name.startswith("."))
    return name_fits and file.is_file()


def _beside(image: Path, texts: list[Path]) -> list[Path]:
    """The caption files of an image, in the order in which they count."""
    return [
        file
        for name in (image.name, image.stem)
        for suffix in SUFFIXES
        for file in texts
        if (file.stem, file.suffix.lower()) == (name, suffix)
    ]


def _metadata_files(folder: Path) -> list[Path]:
    return [folder / name for name in METADATA if (folder / name).is_file()]


def _rows(file: Path) -> Iterator[tuple[str, str]]:
    """File name and caption of every row of a metadata file."""
    read, expected = METADATA[file.name]
    for number, row in read(file):
        try:
            yield str(Path(row["file_name"])), row["text"].strip()
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"line {number} of {file} is not a caption: expected {expected}.") from error


def _jsonl(file: Path) -> Iterator[tuple[int, Any]]:
    # `splitlines` would also split at U+2028 and U+0085, which JSON allows inside a text.
    for number, line in enumerate(_read_text(file).split("\n"), start=1):
        if line.strip():
            try:
                yield number, parse_json(line)
            except ValueError:
                yield number, None


def _csv(file: Path) -> Iterator[tuple[int, Any]]:
    reader = csv.DictReader(io.StringIO(_read_text(file)), strict=True, skipinitialspace=True)
    try:
        columns = reader.fieldnames or []
        if missing := [name for name in ("file_name", "text") if name not in columns]:
            raise UserError(
                f"{file} has no column {missing[0]!r} in its first line, but {', '.join(map(repr, columns))}: expected "
                "file_name,text."
            )
        for row in reader:  # a caption with commas and without quotes has too many cells
            yield reader.line_num, None if None in row else row
    except csv.Error as error:
        raise UserError(
            f"line {reader.line_num} of {file} is not CSV ({error}): put quotes around captions."
        ) from error


METADATA = {
    "metadata.jsonl": (_jsonl, '{"file_name": "00.jpg", "text": "a sks teapot on a table"}'),
    "metadata.csv": (_csv, '00.jpg,"a sks teapot, on a table"'),
}
"""How each metadata file is read, and what a row of it looks like."""


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the captions in {file} could not be read ({error}): expected UTF-8 text.") from error
