"""Images and captions: a folder in, RGB images with a caption each out.

The images are in the folder itself, or in folders inside it that each show one subject and have names as kohya's
sd-scripts read them:

    photos/10_sks teapot/    its images are seen ten times in an epoch; token "sks", class "teapot"
    photos/5_ohwx octopus/
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageOps
from torch import Tensor

from atomtune.errors import UserError
from atomtune.files import expanded
from atomtune.sizes import GivenSize, Size
from atomtune.training.buckets import nearest
from atomtune.training.captions import is_caption, read_captions
from atomtune.training.config import refuse_angle_brackets

logger = logging.getLogger(__name__)
_Converted = TypeVar("_Converted")

_NOT_DECODED = {
    "BUFR",
    "EPS",
    "GRIB",
    "HDF5",
    "MPEG",
    "WMF",
}  # Pillow knows these by name; but cannot decode them
_HEIF = (".heic", ".heif", ".hif")
_MOST_REPEATS = 10_000  # an epoch is a list of images, each as often as it is seen
_NAMED = 5  # files that a warning names
_NAME = re.compile(r"(\d+)_(\S+)\s+(\S.*)")  # of a folder of a subject


@dataclass(frozen=True)
class SubjectFolder:
    """What the name of a folder says of the images in it."""

    path: Path
    repeats: int
    """How many times each of them is seen in an epoch."""
    token: str
    class_name: str

    @property
    def caption(self) -> str:
        """The caption of images that have none of their own."""
        return f"a {self.token} {self.class_name}"


def subject_folders(images: Path) -> list[SubjectFolder]:
    """The folders of subjects in `images`, by name; none if the images are in `images` itself.

    Raises `UserError` if there are images in `images` too or in a folder with another name, and for two classes with
    one token.
    """
    images = expanded(images)
    inside = [folder for folder in _content(images) if _holds_images(folder)] if images.is_dir() else []
    named = {folder: found for folder in inside if (found := _NAME.fullmatch(folder.name))}
    if not named:
        return []
    example = next(iter(named)).name
    if any(map(_is_image, _content(images))):
        raise UserError(
            f"{str(images)!r} holds images, and folders of subjects such as {example!r} too: move the images into one "
            "of the folders, or the folders elsewhere."
        )
    if others := [folder.name for folder in inside if folder not in named]:
        raise UserError(
            f"the folder {others[0]!r} in {str(images)!r} holds images and is not named REPEATS_TOKEN CLASS as "
            f"{example!r} is: rename it, or move it elsewhere."
        )
    found = [SubjectFolder(folder, int(name[1]), name[2], " ".join(name[3].split())) for folder, name in named.items()]
    classes: dict[str, str] = {}
    for folder in found:
        refuse_angle_brackets(folder.caption)
        if not 1 <= folder.repeats <= _MOST_REPEATS:
            raise UserError(
                f"the folder {folder.path.name!r} must begin with a number from 1 to {_MOST_REPEATS}, which says how "
                "often its images are seen in an epoch: rename it."
            )
        if classes.setdefault(folder.token, folder.class_name) != folder.class_name:
            raise UserError(
                f"the folders in {str(images)!r} give one token, {folder.token!r}, to a {classes[folder.token]} and a "
                f"{folder.class_name}: give each subject a token of its own."
            )
    return found


def by_subject(images: Path, files: Iterable[Path]) -> dict[str, list[Path]]:
    """The images of each subject ("sks teapot"), by the folders in `images`; all under "" if there are none."""
    names = {folder.path: f"{folder.token} {folder.class_name}" for folder in subject_folders(images)}
    found: dict[str, list[Path]] = {}
    for file in files:
        found.setdefault(names.get(file.parent, ""), []).append(file)
    return found


def _holds_images(folder: Path) -> bool:
    if not folder.is_dir() or folder.name.startswith("."):
        return False
    try:
        return any(map(_is_image, _content(folder)))
    except UserError:
        if _NAME.fullmatch(folder.name):
            raise
        return False  # such as lost+found, which is not ours


def _content(folder: Path) -> list[Path]:
    """What is in a folder, by name. Raises `UserError` if this user may not look."""
    try:
        return sorted(folder.iterdir())
    except PermissionError as error:
        raise UserError(f"the folder {str(folder)!r} cannot be read by this user: change its permissions.") from error


def find_examples(images: Path, default_caption: str) -> dict[Path, str]:
    """Every image and its caption, sorted by name. Each image is decoded once, to check that it can be.

    Captions come from `metadata.jsonl`, `metadata.csv` or text files beside the images (see `captions`), else they
    are `default_caption`, or what the name of the image's folder says (see `subject_folders`). Other files in the
    folder are logged as a warning, one line for each kind, except names that begin with a dot. Raises `UserError` for
    an empty folder, a broken image or a broken caption.
    """
    images = expanded(images)
    if not (folders := subject_folders(images)):
        return _examples_of(images, default_caption)
    inside = [folder.path for folder in folders]
    others = [file.name for file in _content(images) if file not in inside and not file.name.startswith(".")]
    _warn(images, "beside the folders of images, and not read:", others)
    found = {}
    for folder in folders:
        own = _examples_of(folder.path, folder.caption)
        without = [file.name for file, text in own.items() if folder.token not in text.split()]
        _warn(folder.path, f"the token {folder.token!r} of the folder is not in the captions of", without)
        found |= own
    return found


def _examples_of(images: Path, default_caption: str) -> dict[Path, str]:
    """The images in this folder itself, or the one image that it is."""
    files = _images_of(images)
    several = [file.name for file in files if _decoded(file, to_rgb)[1] > 1]
    captions = read_captions(files, default_caption)
    _warn(images, "only the first frame is used of", several)
    _warn(images, "captions differ for", captions.differing)
    if images.is_dir():  # for a single image, the other files beside it do not matter
        _warn(images, "there is no image for the captions", captions.without_image)
        others = [file for file in _content(images) if file not in files and not file.name.startswith(".")]
        folders = [file.name for file in others if file.is_dir() and any(map(_is_image, file.rglob("*")))]
        _warn(images, "images in subfolders are not read:", folders)
        passed = [file.name for file in others if not (file.is_dir() or is_caption(file))]
        _warn(images, "by their names, neither images nor captions:", passed)
    return captions.of


def _warn(folder: Path, what: str, names: list[str]) -> None:
    if names and os.environ.get("RANK", "0") == "0":  # only one of several processes warns
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        logger.warning("%s: %s %s%s", folder, what, ", ".join(names[:_NAMED]), more)


@functools.cache
def extensions() -> frozenset[str]:
    """File endings of images: those of the formats that Pillow decodes here, and those of HEIF."""
    with_heif()
    known = Image.registered_extensions().items()
    return frozenset(_HEIF) | {end for end, kind in known if kind in Image.OPEN and kind not in _NOT_DECODED}


@functools.cache
def with_heif() -> bool:
    """Let Pillow open HEIC and HEIF files, as phones save them, if pillow-heif is installed. Return whether it is."""
    try:
        import pillow_heif
    except ImportError:
        return False
    pillow_heif.register_heif_opener()
    return True


def _is_image(file: Path) -> bool:
    return file.suffix.lower() in extensions() and not file.name.startswith(".") and not file.is_dir()


def image_files(images: Path) -> list[Path]:
    """The images in a folder, or in its folders of subjects (or the one image that `images` is), by name."""
    places = [folder.path for folder in subject_folders(images)] or [images]
    return [file for place in places for file in _images_of(place)]


def _images_of(images: Path) -> list[Path]:
    if images.is_file():
        return [images]
    if not images.is_dir():
        raise UserError(f"there is no folder {str(images)!r}: expected a folder of images, or one image.")
    files = list(filter(_is_image, _content(images)))
    if not files:
        raise UserError(
            f"there are no images in {str(images)!r}: expected files ending in .png, .jpg, .webp or the like, "
            "in the folder itself, or in folders with names such as '10_sks teapot' (repeats, token, class)."
        )
    return files


def read_image(file: Path) -> Image.Image:
    """Decode one image to RGB, upright, with transparency over white. Raises `UserError` if it cannot be.

    The size is checked before decoding, by Pillow's own limit (89 million pixels). Of several frames, the first is
    returned.
    """
    return _decoded(file, to_rgb)[0]


@dataclass(frozen=True)
class Picture:
    """An image as it is trained on."""

    image: Image.Image
    """RGB, of the size that is trained on."""
    original: tuple[int, int]
    """Width and height of the file, upright."""
    alpha: Image.Image | None = None
    """Grey, of the same size: how much each pixel counts in the loss. None if all count alike."""

    @property
    def visible(self) -> Image.Image:
        """What counts of it, on white."""
        if self.alpha is None:
            return self.image
        return Image.composite(self.image, Image.new("RGB", self.image.size, "white"), self.alpha)

    def mirrored(self) -> Picture:
        """The mirror image."""
        alpha = None if self.alpha is None else ImageOps.mirror(self.alpha)
        return Picture(ImageOps.mirror(self.image), self.original, alpha)


def read_picture(file: Path, sizes: Sequence[Size], alpha_mask: bool = False) -> Picture:
    """The image, scaled and cropped to the one of `sizes` that is most like its own shape.

    With `alpha_mask` its alpha channel, if it has one, becomes `Picture.alpha`, and the colours are those that the file
    holds below it, not mixed with white. Raises `UserError` if nothing is visible.
    """
    (image, alpha), _ = _decoded(file, _split if alpha_mask else lambda decoded: (to_rgb(decoded), None))
    size = nearest(*image.size, list(sizes))
    cropped = None if alpha is None else fitted(alpha, size, Image.Resampling.BOX)
    if cropped is not None and cropped.getextrema() == (0, 0):
        raise UserError(
            f"{file} is transparent everywhere, at {size} pixels, so with alpha_mask nothing of it is left to learn: "
            "remove it, or make opaque what should be learnt."
        )
    return Picture(fitted(image, size), image.size, cropped)


def _split(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """The colours of an image, also where it is transparent, and its alpha channel, if it has one."""
    if image.mode == "F" or image.mode.startswith("I"):
        transparent = image.info.get("transparency")
        opaque = np.asarray(image) != transparent
        return to_rgb(image), None if transparent is None else Image.fromarray(opaque).convert("L")
    if not image.has_transparency_data:
        return to_rgb(image), None
    image = image.convert("RGBA")
    return image.convert("RGB"), image.getchannel("A")


def _decoded(file: Path, convert: Callable[[Image.Image], _Converted]) -> tuple[_Converted, int]:
    """The upright image after `convert`, and how many frames there are."""
    if file.suffix.lower() in _HEIF and not with_heif():
        raise UserError(
            f"{file} needs pillow-heif to be read: install it with pip install 'atomtune[heif]', or save it as JPEG."
        )
    try:
        with warnings.catch_warnings(record=True) as minor:  # such as EXIF data that cannot be read
            warnings.simplefilter("always")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file) as image:
                frames = 1 if image.format == "PSD" else getattr(image, "n_frames", 1)  # PSD's are its layers
                _scale_transparent_colour(image)
                decoded = convert(ImageOps.exif_transpose(image))
        for warning in minor:
            logger.warning("%s: %s", file, warning.message)
        return decoded, frames
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise UserError(
            f"{file} is too large (more than {Image.MAX_IMAGE_PIXELS:,} pixels): scale it down first."
        ) from error
    except UserError as error:
        raise UserError(f"{file} {error}") from error
    except (OSError, ValueError, SyntaxError) as error:  # Pillow raises all three for broken files
        raise UserError(f"{file} {_what_is_wrong(file, error)}: replace or remove it.") from error


def _what_is_wrong(file: Path, error: Exception) -> str:
    if not file.exists():
        return "is a link to a file that is not there" if file.is_symlink() else "is not there"
    if isinstance(error, PermissionError):
        return f"could not be opened ({error.strerror})"
    return "is empty" if file.stat().st_size == 0 else "is not an image that can be read"


def _scale_transparent_colour(image: Image.Image) -> None:
    """Pillow brings the pixels of a PNG to 8 bits, and leaves its transparent colour (tRNS) in the bits of the file."""
    colour, tiles = image.info.get("transparency"), getattr(image, "tile", None)
    mode = tiles[0][3] if tiles else None  # the pixel format in the file
    if colour is not None and mode in ("L;2", "L;4"):
        image.info["transparency"] = colour * (85 if mode == "L;2" else 17)
    elif isinstance(colour, tuple) and mode == "RGB;16B":
        image.info["transparency"] = tuple(value >> 8 for value in colour)


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode to RGB: grey, palettes, CMYK, and transparent pixels on white.

    Grey of more than 8 bits is scaled by its range: 16-bit integers by 65535, floats by 1, and those of Pillow's 32-bit
    mode "I" by 255 or 65535, the smallest that is not below any of them. Raises `UserError` for numbers outside that.
    """
    if image.mode == "F" or image.mode.startswith("I"):
        values = np.asarray(image).astype(np.float64)
        grey = np.rint(values / _largest(image.mode, values) * 255).astype(np.uint8)
        if (transparent := image.info.get("transparency")) is not None:
            grey[values == transparent] = 255
        return Image.fromarray(grey).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _largest(mode: str, values: np.ndarray) -> int:
    """The end of the range that starts at 0 and holds all the numbers of a grey image."""
    ranges = {"F": (1,), "I": (255, 65535)}.get(mode, (65535,))
    low, high = values.min(), values.max()
    for largest in ranges:
        if low >= 0 and high <= largest:
            return largest
    raise UserError(
        f"holds numbers from {low:g} to {high:g} (mode {mode}): scale them to 0 (black) to {ranges[-1]} "
        "(white), or save it with 8 bits."
    )


def fitted(image: Image.Image, size: GivenSize, resampling: Image.Resampling = Image.Resampling.LANCZOS) -> Image.Image:
    """Scale the image until it covers `size`, keep the proportions, and crop the centre."""
    size = Size.of(size)
    return ImageOps.fit(image, (size.width, size.height), resampling)


def to_tensor(image: Image.Image) -> Float[Tensor, "3 height width"]:
    """RGB as numbers from -1 to 1, the input of autoencoders."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 127.5 - 1


def alpha_tensor(alpha: Image.Image | None, size: Size) -> Float[Tensor, "1 height width"]:
    """An alpha channel as numbers from 0 to 1; all 1 of an image without."""
    if alpha is None:
        return torch.ones(1, *size.shape)
    return torch.from_numpy(np.array(alpha))[None].float() / 255


def digest(pictures: list[Picture], captions: list[str], folders: Sequence[str] = ()) -> str:
    """Sixteen hex digits that differ if the images, their alpha, captions or the names of their folders differ."""
    sha = hashlib.sha256("".join(f"{name}\0" for name in folders).encode())
    for picture, caption in zip(pictures, captions, strict=True):
        alpha = b"" if picture.alpha is None else picture.alpha.tobytes()
        sha.update(picture.image.tobytes() + alpha + caption.encode() + b"\0")
    return sha.hexdigest()[:16]
