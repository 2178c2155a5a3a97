"""Pictures and captions: a folder in, square RGB pictures with a caption each out."""

from __future__ import annotations

import hashlib
import json
import warnings
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageOps
from torch import Tensor

from atomtune.errors import UserError
from atomtune.training.config import refuse_angle_brackets

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


def find_examples(pictures: Path, default_caption: str) -> dict[Path, str]:
    """Every picture and its caption, by name, each decoded once to see that it can be.

    Captions come from `metadata.jsonl` (`{"file_name": ..., "text": ...}`), else from name.txt beside name.png, else
    they are `default_caption`. Raises `UserError` for an empty folder, a broken picture or a broken caption.
    """
    files = picture_files(pictures)
    for file in files:
        read_picture(file)
    return read_captions(files, default_caption)


def picture_files(pictures: Path) -> list[Path]:
    """The pictures in a folder (or the one picture that `pictures` is), by name."""
    if pictures.is_file():
        return [pictures]
    if not pictures.is_dir():
        raise UserError(f"there is no folder {str(pictures)!r}: expected a folder of pictures.")
    files = sorted(
        file for file in pictures.iterdir() if file.suffix.lower() in EXTENSIONS and not file.name.startswith(".")
    )
    if not files:
        raise UserError(
            f"there are no pictures in {str(pictures)!r}: expected files ending in {', '.join(EXTENSIONS)}."
        )
    return files


def read_picture(file: Path) -> Image.Image:
    """Decode one picture to RGB, upright, with transparency over white. Raises `UserError` if it cannot be.

    The size is checked before decoding, by Pillow's own limit (89 million pixels).
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file) as picture:
                return to_rgb(ImageOps.exif_transpose(picture))
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise UserError(
            f"{file} is too large for a photograph (more than {Image.MAX_IMAGE_PIXELS:,} pixels): scale it down first."
        ) from error
    except (OSError, ValueError, SyntaxError) as error:  # Pillow raises all three for broken files
        what = "is empty" if file.stat().st_size == 0 else "is not a picture that can be read"
        raise UserError(f"{file} {what}: replace or remove it.") from error


def to_rgb(picture: Image.Image) -> Image.Image:
    """Any mode to RGB: grey (8 or 16 bits), palettes, CMYK, and transparency composed over white."""
    if picture.mode.startswith("I"):  # 16 bits: PIL's own conversion would clip
        picture = Image.fromarray((np.asarray(picture).astype(np.float64) / 257).clip(0, 255).astype(np.uint8))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture)
    return picture.convert("RGB")


def square(picture: Image.Image, resolution: int) -> Image.Image:
    """Scale the shorter side to `resolution`, keep the proportions, and crop the centre."""
    return ImageOps.fit(picture, (resolution, resolution), Image.Resampling.LANCZOS)


def to_tensor(picture: Image.Image) -> Float[Tensor, "3 height width"]:
    """RGB to the -1 to 1 that autoencoders take."""
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 127.5 - 1


def read_captions(files: list[Path], default: str) -> dict[Path, str]:
    """The caption of every picture. Raises `UserError` naming the file (and line) that is wrong."""
    metadata, captions = _read_metadata(files), {}
    for file in files:
        beside = file.with_suffix(".txt")
        if file in metadata:
            captions[file] = metadata[file]
        else:
            captions[file] = _read_text(beside).strip() if beside.is_file() else default
        if not captions[file]:
            raise UserError(f"the caption of {file} is empty: write one, or remove it to get {default!r}.")
        refuse_angle_brackets(captions[file])
    return captions


def _read_metadata(files: list[Path]) -> dict[Path, str]:
    metadata = files[0].parent / "metadata.jsonl"
    captions: dict[Path, str] = {}
    if not metadata.is_file():
        return captions
    for number, line in enumerate(_read_text(metadata).splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            name, text = row["file_name"], row["text"].strip()
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            expected = '{"file_name": "00.jpg", "text": "a sks teapot on a table"}'
            raise UserError(f"line {number} of {metadata} is not a caption: expected {expected}.") from error
        if not (metadata.parent / name).is_file():
            raise UserError(
                f"line {number} of {metadata} names {name!r}, which is not there: fix the name or the line."
            )
        captions[metadata.parent / name] = text
    return captions


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the captions in {file} could not be read ({error}): expected UTF-8 text.") from error


def digest(pictures: list[Image.Image], captions: list[str]) -> str:
    """Sixteen hex digits that tell these pictures and captions from others."""
    sha = hashlib.sha256()
    for picture, caption in zip(pictures, captions, strict=True):
        sha.update(picture.tobytes() + caption.encode() + b"\0")
    return sha.hexdigest()[:16]
