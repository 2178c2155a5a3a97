"""What the images of a run show: one subject or several, and how often each image is seen."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from atomtune.errors import UserError
from atomtune.metrics.pixels import clear_backgrounds
from atomtune.prompts import Subject
from atomtune.training.config import CustomizeConfig
from atomtune.training.data import subject_folders


@dataclass(frozen=True)
class Shown:
    """The subjects of a run, and which image shows which."""

    subjects: tuple[Subject, ...]
    of: tuple[int, ...]
    """The number of its subject, for each image."""
    repeats: tuple[int, ...]
    """How many times it is seen in an epoch, for each image."""
    folders: tuple[str, ...] = ()
    """The names of the folders, where they name the subjects."""

    @property
    def several(self) -> bool:
        return len(self.subjects) > 1

    @property
    def classes(self) -> list[str]:
        """The classes of the subjects, each once."""
        return list(dict.fromkeys(subject.class_name for subject in self.subjects))

    @property
    def order(self) -> list[int]:
        """The images of an epoch, each as often as it is seen."""
        return [image for image, times in enumerate(self.repeats) for _ in range(times)]

    def class_of(self, image: int) -> int:
        """The place in `classes` of what an image shows."""
        return self.classes.index(self.subjects[self.of[image]].class_name)

    def images_of(self, number: int) -> list[int]:
        """The images that show the subject of this number."""
        return [image for image, subject in enumerate(self.of) if subject == number]

    def subject_in(self, prompt: str) -> int | None:
        """The number of the one subject that a prompt names; the only subject of a run is in every prompt."""
        named = [number for number, subject in enumerate(self.subjects) if subject.is_in(prompt) or not self.several]
        return named[0] if len(named) == 1 else None

    def on_clear_backgrounds(self, images: Sequence[Image.Image]) -> Shown:
        """The same, with the colours that suit each subject (see `clear_backgrounds`)."""
        own = [[images[image] for image in self.images_of(number)] for number in range(len(self.subjects))]
        coloured = (
            replace(subject, backgrounds=tuple(clear_backgrounds(some))) for subject, some in zip(self.subjects, own)
        )
        return replace(self, subjects=tuple(coloured))


def shown_in(config: CustomizeConfig, files: Iterable[Path]) -> Shown:
    """What these images of the run show. Raises `UserError` if nothing says what it is, or if the options say other
    than the names of the folders."""
    files, folders = list(files), subject_folders(config.images)
    if not folders:
        if config.class_name is None:
            raise UserError(
                "class_name is missing, the word for what the images show: give --class-name, such as teapot, or put "
                "the images into folders with names such as '10_sks teapot' (repeats, token, class)."
            )
        return Shown((Subject(config.token, config.class_name),), (0,) * len(files), (1,) * len(files))
    _refuse_other_words(config, [(folder.token, folder.class_name) for folder in folders])
    words = list(dict.fromkeys((folder.token, folder.class_name) for folder in folders))
    of = {folder.path: folder for folder in folders}
    found = [of[file.parent] for file in files]
    return Shown(
        tuple(Subject(*each) for each in words),
        tuple(words.index((folder.token, folder.class_name)) for folder in found),
        tuple(folder.repeats for folder in found),
        tuple(folder.path.name for folder in folders),
    )


def _refuse_other_words(config: CustomizeConfig, words: Sequence[tuple[str, str]]) -> None:
    """Raise `UserError` for options that give one subject's words, where the names of folders give them."""
    tokens, classes = ({*each} for each in zip(*words))
    said = f"the folders in {str(config.images)!r} name their subjects"
    if config.class_name is not None and {config.class_name} != classes:
        raise UserError(f"{said}, and class_name is {config.class_name!r}: leave it out, or rename the folders.")
    if config.token != CustomizeConfig.token and {config.token} != tokens:
        raise UserError(f"{said}, and token is {config.token!r}: leave it out, or rename the folders.")
    if config.caption is not None:
        raise UserError(f"{said}, and caption is one for all images: leave it out, or write text files beside them.")
    if config.class_prompt is not None and len(classes) > 1:
        raise UserError(f"{said}, of {len(classes)} classes, and class_prompt is one for all: leave it out.")
