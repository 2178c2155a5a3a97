"""Images to begin with: what the pages of the documentation learn, edit and draw."""

from __future__ import annotations

import os
from pathlib import Path

from atomtune.errors import UserError
from atomtune.files import expanded, refuse_output

IMAGES = Path(__file__).parent / "moji" / "images"
ADAPTER = Path(__file__).parent / "moji" / "teapot"
"""An adapter of the teapot: the demo's, pruned, so that it is small. `make readme` writes it."""


def example_images(folder: str | Path) -> Path:
    """Lay out the example images in a folder, and return the folder.

    teapot/       five images of a subject that moji has never seen, and their captions
    octopus/      another subject
    openmoji/     ten drawings of a style that moji has never seen
    teapot.png    one image, to edit
    prompts.txt   eight prompts for the teapot
    LICENSES.md   who drew them, and what may be done with them

    Files that are there with the same content stay. Raises `UserError`, before anything is written, if one is there
    with another content, or if the folder cannot be written to.
    """
    folder = expanded(folder)
    refuse_output(folder)
    shipped = {file.relative_to(IMAGES): file.read_bytes() for file in sorted(IMAGES.rglob("*")) if file.is_file()}
    try:
        for name in shipped:
            if taken := _in_the_way(folder, name, shipped[name]):
                raise UserError(f"{taken} is there already and is another file: choose another folder.")
        for name, content in shipped.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
    except OSError as error:
        raise UserError(f"{folder} cannot be written to ({error.strerror}): choose another folder.") from error
    return folder


def _in_the_way(folder: Path, name: Path, content: bytes) -> Path | None:
    """What is there instead of this file or of its folder; a link to nowhere too, through which another file would be
    written."""
    file, above = folder / name, (folder / name).parent
    if os.path.lexists(above) and not above.is_dir():
        return above
    there = os.path.lexists(file)
    return file if there and not (file.is_file() and file.read_bytes() == content) else None
