"""The folders that the studio may read and write, by their names on the page.

A name from the page is never joined to a path: it is looked up among what is there. Runs are folders of the workspace,
those named on the command line, and the example that ships. A folder with a link that leads out of it is not one of
them.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from atomtune import comparing, editing
from atomtune.errors import UserError
from atomtune.files import real_path, refuse_output, write_once, write_text
from atomtune.shell import command_line
from atomtune.shipped import ADAPTER, IMAGES
from atomtune.storage import runs
from atomtune.storage.metadata import CONFIG_FILE
from atomtune.storage.reading import AdapterInfo, adapter_info
from atomtune.training.data import read_image

EXAMPLE = "teapot (example)"
LARGEST = 20_000_000
"""Bytes of an uploaded file."""
MOST = 24
"""Images of a subject."""
SHOWN = 512
"""Pixels, the least width of an image on the page: moji's have 64."""
_NAME = re.compile(r"\w[\w -]{0,59}")
_PRIVATE = ".studio"


class Workspace:
    """Folders for the page.

    Args:
        folder: The workspace, which is made if it is not there.
        given: Runs elsewhere, from the command line.
    """

    def __init__(self, folder: Path, given: Sequence[Path] = ()) -> None:
        refuse_output(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.shown, self.folder = folder, real_path(folder)
        self.given = {path.name: path for path in given}
        for path in given:
            adapter_info(path)  # raises where there is none

    @property
    def cache(self) -> Path:
        """Where Gradio keeps uploads and images that it shows."""
        return self.folder / _PRIVATE / "cache"

    @property
    def jobs(self) -> Path:
        return self.folder / _PRIVATE / "jobs"

    def runs(self) -> dict[str, Path]:
        """Every run, finished or not, and every adapter, by name: the newest first."""
        found = {path.name: path for path in sorted(self.folder.iterdir(), key=_age) if self._is_run(path)}
        return {name: self.shown / path.name for name, path in found.items()} | self.given | {EXAMPLE: ADAPTER}

    def adapters(self) -> list[str]:
        """Names of those that can be drawn with."""
        return [name for name, path in self.runs().items() if _has_adapter(path)]

    def edits(self) -> list[str]:
        """Names of those that `edit` made, and that it finished."""
        needed = editing.RESULTS[:2]  # there is no preset where no rung is best
        return [name for name, path in self.runs().items() if all((path / file).is_file() for file in needed)]

    def comparisons(self) -> list[str]:
        """Names of the folders that `compare` made: the newest first."""
        return [path.name for path in sorted(self.folder.iterdir(), key=_age) if self.holds(path, *comparing.RESULTS)]

    def run(self, name: str | None) -> Path:
        """The folder of a run. Raises `UserError` if there is none of this name."""
        if name is None:
            raise UserError("choose one of the list first.")
        if (found := self.runs().get(name)) is None:
            raise UserError(f"there is no run {name!r} in {self.shown}: choose one of the list.")
        return found

    def info(self, name: str | None) -> AdapterInfo:
        """What an adapter says of itself. Raises `UserError`."""
        return adapter_info(self.run(name))

    def new(self, name: str) -> Path:
        """The folder for a new run of this name. Raises `UserError` if the name cannot be one, or is taken."""
        if not _NAME.fullmatch(name := name.strip()):
            raise UserError(f"a name is a word of letters, digits, spaces and hyphens, got {name!r}: try teapot-2.")
        if (self.folder / name).exists() or (self.folder / name).is_symlink():
            raise UserError(f"there is a run {name!r} already: choose another name.")
        return self.shown / name

    def save_images(self, name: str, uploads: Sequence[str], captions: Sequence[str]) -> Path:
        """Write uploaded images with their captions into `images/NAME`, as PNG; return the folder."""
        images = [self.upload(file) for file in uploads]
        folder = self.shown / "images" / self.new(name).name
        self._refuse_link(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for old in [*folder.glob("[0-9][0-9].png"), *folder.glob("[0-9][0-9].txt")]:
            old.unlink()
        for number, (image, caption) in enumerate(zip(images, captions, strict=True)):
            image.save(folder / f"{number:02d}.png")
            (folder / f"{number:02d}.txt").write_text(caption.strip(), encoding="utf-8")
        return folder

    def upload(self, file: str) -> Image.Image:
        """An uploaded image, or one that ships. Raises `UserError` if it is another file, too large, or no image."""
        place = real_path(file)
        if not (place.is_relative_to(real_path(self.cache)) or place.is_relative_to(real_path(IMAGES))):
            raise UserError(f"{Path(file).name} was not uploaded here: drop the image on the page.")
        if place.stat().st_size > LARGEST:
            raise UserError(f"{place.name} is larger than {LARGEST // 10**6} MB: scale it down first.")
        try:
            return read_image(place)
        except UserError as error:
            raise UserError(str(error).replace(str(place), place.name)) from error

    def picture(self, image: Image.Image) -> str:
        """The file of an image for the page, `enlarged`.

        Gradio would write it again for each user who asks for it, also while the browser of another one reads it.
        """
        enlarged(image).save(content := io.BytesIO(), "PNG")
        return str(write_once(self.cache / "pictures", "image.png", content.getvalue()))

    def copy(self, file: Path) -> str:
        """A copy for the page, as it is, of an image that ships: what is elsewhere the page may not show."""
        return str(write_once(self.cache / "pictures", file.name, file.read_bytes()))

    def save_preset(self, name: str, preset: dict[str, Any]) -> Path:
        """Write a preset into `presets/NAME.json`; return the file. Raises `UserError` if the name cannot be one, or is
        that of another preset."""
        if not _NAME.fullmatch(name := name.strip()):
            raise UserError(f"a name is a word of letters, digits, spaces and hyphens, got {name!r}: try calmer.")
        file = self.shown / "presets" / f"{name}.json"
        self._refuse_link(file)
        text = json.dumps(preset, indent=1) + "\n"
        if file.exists() and file.read_text(encoding="utf-8") != text:
            raise UserError(f"there is a preset {name!r} already: choose another name.")
        write_text(file, text)
        return file

    def _refuse_link(self, path: Path) -> None:
        """Raise `UserError` if writing to `path` would leave the workspace by a link."""
        if not real_path(path).is_relative_to(self.folder):
            raise UserError(f"{path} leads out of the workspace by a link: remove the link.")

    def refuse_outside(self, name: str, words: Sequence[object]) -> None:
        """Raise `UserError` for a command that would read the images of a run which are not inside the workspace."""
        if not self.own_images(name):
            raise UserError(
                f"{name} was trained on images outside the workspace, which are not read from here: type "
                f"`{command_line(*words)}` in a terminal instead."
            )

    def holds(self, path: Path, *names: str) -> bool:
        """Whether a folder of the workspace has these files, and no link out of it."""
        there = path.is_dir() and not path.name.startswith(".") and all((path / name).is_file() for name in names)
        return there and _stays_inside(path, self.folder)

    def own_images(self, name: str) -> bool:
        """Whether the images of a run are inside the workspace, or ship with atomtune."""
        training: Any = runs.training_of(self.run(name))
        if training is None:
            return True
        place = Path(training["images"]).resolve()
        return any(place.is_relative_to(real_path(folder)) for folder in (self.folder, IMAGES))

    def _is_run(self, path: Path) -> bool:
        marks = [path / runs.CONFIG, path / CONFIG_FILE, path / "adapter" / CONFIG_FILE]
        return any(mark.is_file() for mark in marks) and self.holds(path)


def enlarged(image: Image.Image) -> Image.Image:
    """The image at `SHOWN` pixels or more, by a whole factor."""
    factor = max(1, SHOWN // image.width)
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.BICUBIC)


def _has_adapter(path: Path) -> bool:
    return (path / CONFIG_FILE).is_file() or (path / "adapter" / CONFIG_FILE).is_file()


def _stays_inside(path: Path, folder: Path) -> bool:
    """Whether no link in `path` leads out of `folder`."""
    return all(file.resolve().is_relative_to(folder) for file in (path, *path.rglob("*")) if file.is_symlink())


def _age(path: Path) -> float:
    return -path.lstat().st_mtime
