"""Draw images with a pipeline, adapted or not, and save them together with their settings.

Image j of every prompt starts from the noise of seed + j. The noise depends on that seed alone and not on the batch,
so any single image can be drawn again from its settings.
"""

import hashlib
import inspect
import json
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from atomtune.bases import base_hash, call_options, denoiser, fingerprint, precision_and_device
from atomtune.errors import UserError, check_seed
from atomtune.files import atomic_file, expanded, file_hash
from atomtune.kept import NO_GUIDANCE
from atomtune.sizes import GivenSize, Size
from atomtune.storage.reading import adapter_folder

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

_CELL = 128  # least width in pixels of an image in a grid
_TEXT = 13  # pixels, height of a grid's labels


@dataclass
class Drawing:
    """An image and its settings: prompt, seed, steps, guidance_scale, resolution, negative_prompt if there is one,
    dtype, device, and any others that the caller adds."""

    image: Image.Image
    settings: dict[str, Any] = field(default_factory=dict)


def generate(
    pipe: "DiffusionPipeline",
    prompts: str | Sequence[str],
    num: int = 1,
    seed: int = 0,
    steps: int | None = None,
    guidance_scale: float | None = None,
    batch_size: int = 8,
    resolution: GivenSize | None = None,
    negative_prompt: str | None = None,
) -> list[Drawing]:
    """Draw `num` images of each prompt, prompt by prompt, with seeds seed, seed + 1, ...

    `steps`, `guidance_scale` and `resolution` are the pipeline's own when not given. A resolution is a number of
    pixels, or "1024x768", width first (None is recorded for a base that does not define its size). `negative_prompt` is
    what no image should show; it works only with guidance.
    Raises `UserError` for impossible settings. `draw` does the same and yields each batch as soon as it is drawn.
    """
    planned = plan(pipe, prompts, num, seed, steps, guidance_scale, resolution, negative_prompt)
    return list(draw(pipe, planned, batch_size))


def plan(
    pipe: "DiffusionPipeline",
    prompts: str | Sequence[str],
    num: int = 1,
    seed: int = 0,
    steps: int | None = None,
    guidance_scale: float | None = None,
    resolution: GivenSize | None = None,
    negative_prompt: str | None = None,
) -> list[dict[str, Any]]:
    """The settings of each image that `generate` draws, in order, with everything that `draw` needs."""
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    defaults = inspect.signature(pipe.__call__).parameters
    steps = defaults["num_inference_steps"].default if steps is None else steps
    guidance_scale = defaults["guidance_scale"].default if guidance_scale is None else guidance_scale
    for name, value in {"num": num, "steps": steps}.items():
        if value < 1:
            raise UserError(f"{name} must be at least 1, got {value}.")
    check_seed(seed, num)
    options = call_options(pipe, resolution)
    size = Size(options["width"], options["height"]).plain if "height" in options else None
    common = {"steps": steps, "guidance_scale": guidance_scale, "resolution": size}
    if negative_prompt is not None:
        _refuse_idle(pipe, guidance_scale)
        common["negative_prompt"] = negative_prompt
    common |= precision_and_device(pipe)
    return [{"prompt": prompt, "seed": seed + j} | common for prompt in prompts for j in range(num)]


def _refuse_idle(pipe: "DiffusionPipeline", guidance_scale: Any) -> None:
    """Raise `UserError` where a negative prompt would do nothing."""
    accepted = inspect.signature(pipe.__call__).parameters
    if "negative_prompt" not in accepted:
        raise UserError(f"{type(pipe).__name__} takes no negative prompt: leave it out.")
    # If guidance_scale is an input of a distilled network, true_cfg_scale mixes in the negative prompt.
    name = "true_cfg_scale" if "true_cfg_scale" in accepted else "guidance_scale"
    strength = guidance_scale if name == "guidance_scale" else accepted[name].default
    if strength <= 1:
        raise UserError(
            f"a negative prompt needs guidance, and {name} is {strength:g}, which means none: set it above 1, or "
            "leave the negative prompt out."
        )


def draw(pipe: "DiffusionPipeline", planned: Sequence[dict[str, Any]], batch_size: int = 8) -> Iterator[Drawing]:
    """Draw images from their settings, `batch_size` at once, and yield each batch as soon as it is drawn.

    The settings are those of `plan`, or of `read_settings`, with any others that the caller added. All but prompt and
    seed must be the same in one call. Raises `UserError`.
    """
    if batch_size < 1:
        raise UserError(f"batch_size must be at least 1, got {batch_size}.")
    for start in range(0, len(planned), batch_size):
        batch = planned[start : start + batch_size]
        options = call_options(pipe, batch[0]["resolution"])
        if "negative_prompt" in batch[0]:
            options["negative_prompt"] = [settings["negative_prompt"] for settings in batch]
        scale = batch[0]["guidance_scale"]
        token = NO_GUIDANCE.set(scale is not None and scale <= 1)
        try:
            images = pipe(  # pyright: ignore[reportCallIssue]
                prompt=[settings["prompt"] for settings in batch],
                # on the CPU: the same noise on every device
                generator=[torch.Generator().manual_seed(settings["seed"]) for settings in batch],
                num_inference_steps=batch[0]["steps"],
                guidance_scale=scale,
                **options,
            ).images
        except (IndexError, RuntimeError, ValueError) as error:
            if "height" in options:
                raise
            raise UserError(
                f"{type(pipe).__name__} does not define the size of its images, and fails with its default ({error}): "
                "give a resolution in pixels."
            ) from error
        finally:
            NO_GUIDANCE.reset(token)
        yield from (Drawing(image, dict(settings)) for image, settings in zip(images, batch, strict=True))


def draw_missing(
    pipe: "DiffusionPipeline", planned: Sequence[dict[str, Any]], folder: Path, batch_size: int = 8
) -> int:
    """Draw the planned images into `planned_files`, except those that were drawn before with the same settings; return
    how many were drawn. Each is on disk as soon as it is drawn."""
    places = zip(planned_files(planned, folder), planned, strict=True)
    missing = [(file, settings) for file, settings in places if not is_drawn(file, settings)]
    drawings = draw(pipe, [settings for _, settings in missing], batch_size)
    for (file, _), drawing in zip(missing, drawings, strict=True):
        save_png(drawing.image, file, drawing.settings)
    return len(missing)


def planned_files(planned: Sequence[dict[str, Any]], folder: Path) -> list[Path]:
    """The file in `folder` of each planned image, see `file_name`."""
    return [folder / file_name(index, settings) for index, settings in enumerate(planned)]


def save_images(drawings: Iterable[Drawing], folder: str | Path) -> list[Path]:
    """Write each image as PNG with its settings inside (see `read_settings`); return the files, in order.

    Images from `draw` are written as soon as they are drawn. Other settings give another name (see `file_name`).
    """
    files = []
    for index, drawing in enumerate(drawings):
        files.append(expanded(folder) / file_name(index, drawing.settings))
        save_png(drawing.image, files[-1], drawing.settings)
    return files


def file_name(index: int, settings: dict[str, Any]) -> str:
    """`000-a-dog-seed3-1f0c52ab.png`: place in its call, words of the prompt, seed, digest of all settings.

    So the same settings give the same name, and other settings another name. It has well under 255 bytes.
    """
    words = file_words(str(settings.get("prompt", "")))
    return f"{index:03d}-{words}-seed{settings.get('seed', 0)}-{digest(settings)}.png"


def file_words(text: str) -> str:
    """The words of a text with hyphens between them, 60 bytes at most, for the name of a file or a folder."""
    words, encoding = re.sub(r"\W+", "-", text.lower()).strip("-"), sys.getfilesystemencoding()
    return words.encode(encoding, "ignore")[:60].decode(encoding, "ignore")


def digest(settings: Any) -> str:
    """Eight letters and digits that differ where the settings do."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]


def made_by(pipe: "DiffusionPipeline", adapter: str | Path | None = None) -> dict[str, Any]:
    """The base and the adapter, by name and by a hash of their weights, for the settings of their images."""
    made_by: dict[str, Any] = {"base": pipe.name_or_path, "base_hash": base_hash(fingerprint(denoiser(pipe)))[:16]}
    if adapter is not None:
        files = sorted(file for file in adapter_folder(adapter).glob("adapter_*") if file.is_file())
        made_by |= {"adapter": str(adapter), "adapter_hash": file_hash(*files)[:16]}
    return made_by


def save_png(image: Image.Image, file: str | Path, settings: dict[str, Any] | None = None) -> None:
    """Write one PNG, whole or not at all, with `settings` as JSON in its text chunk "atomtune".

    Raises `UserError` if there is a file of that name without such a chunk: atomtune did not write it.
    """
    file = expanded(file)
    refuse_other_image(file)
    metadata = PngImagePlugin.PngInfo()
    metadata.add_text("atomtune", json.dumps(settings or {}, ensure_ascii=False))
    with atomic_file(file) as temporary:
        image.save(temporary, format="PNG", pnginfo=metadata)


def refuse_other_image(file: str | Path) -> None:
    """Raise `UserError` if there is a file that `save_png` did not write."""
    if Path(file).exists() and not _is_ours(Path(file)):
        raise UserError(f"{file} exists already and is not an image that atomtune drew: choose another folder.")


def _is_ours(file: Path) -> bool:
    try:
        with Image.open(file) as image:
            return "atomtune" in image.info
    except (OSError, ValueError, SyntaxError):  # Pillow raises all three for what is no image
        return False


def read_settings(file: str | Path) -> dict[str, Any]:
    """The settings inside a PNG that atomtune wrote."""
    with Image.open(expanded(file)) as image:
        return json.loads(image.info.get("atomtune", "{}"))


def read_image(file: str | Path) -> Image.Image:
    """Read the image in a file, and close the file."""
    with Image.open(file) as image:
        return image.convert("RGB")


def is_drawn(file: str | Path, settings: dict[str, Any]) -> bool:
    """Whether the file is an image that atomtune drew with exactly these settings."""
    try:
        return read_settings(file) == settings
    except (OSError, ValueError):
        return False


def grid(
    rows: Sequence[Sequence[Image.Image]], row_labels: Sequence[str], column_labels: Sequence[str] = ()
) -> Image.Image:
    """One white sheet: a row of images for each label on the left, with `column_labels` above, wrapped to fit.

    Each image keeps its proportions, in a cell as wide and as high as the widest and the highest of all.
    """
    font = ImageFont.load_default(_TEXT)
    images = [image for row in rows for image in row]
    cell = max(_CELL, *(image.width for image in images))
    high = max(round(image.height * min(cell / image.width, cell / image.height)) for image in images)
    left = 12 + max(int(font.getlength(line)) for label in row_labels for line in _wrap(label, font, cell))
    heads = [_wrap(label, font, cell) for label in column_labels]
    top = 8 + _TEXT * 5 // 4 * max((len(lines) for lines in heads), default=0)
    gap = 4
    columns = max(len(row) for row in rows)
    sheet = Image.new("RGB", (left + columns * (cell + gap), top + len(rows) * (high + gap)), "white")
    draw = ImageDraw.Draw(sheet)
    for column, lines in enumerate(heads):
        draw.multiline_text((left + column * (cell + gap), 2), "\n".join(lines), "black", font)
    for r, (row, label) in enumerate(zip(rows, row_labels)):
        y = top + r * (high + gap)
        draw.multiline_text((2, y + 2), "\n".join(_wrap(label, font, cell)), "black", font)
        for column, image in enumerate(row):
            scale = min(cell / image.width, cell / image.height)
            shape = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
            place = (left + column * (cell + gap) + (cell - shape[0]) // 2, y + (high - shape[1]) // 2)
            sheet.paste(image.convert("RGB").resize(shape, Image.Resampling.BICUBIC), place)
    return sheet


def _wrap(text: str, font, width: int) -> list[str]:
    """Break `text` at spaces so that no line is wider than `width` pixels (a longer word stays whole)."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines
