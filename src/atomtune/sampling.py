"""Draw pictures with a pipeline, adapted or not, and put them on disk with the settings that made them.

Picture j of every prompt starts from the noise of seed + j. The noise depends on that seed alone, not on the batch a
picture is drawn in, so any single picture can be drawn again from its settings.
"""

import inspect
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from atomtune.errors import UserError
from atomtune.files import atomic_file
from atomtune.pipelines import call_options

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

_CELL = 128  # pixels a picture gets in a grid, at least
_TEXT = 13  # pixels, height of a grid's labels


@dataclass
class Drawing:
    """A picture and what made it: prompt, seed, steps, guidance_scale, and whatever the caller adds."""

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
    resolution: int | None = None,
) -> list[Drawing]:
    """Draw `num` pictures of each prompt, prompt by prompt, with seeds seed, seed + 1, ...

    `steps`, `guidance_scale` and `resolution` (pixels) are the pipeline's own when not given. Raises `UserError` for
    numbers that cannot be drawn with.
    """
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    defaults = inspect.signature(pipe.__call__).parameters
    steps = defaults["num_inference_steps"].default if steps is None else steps
    guidance_scale = defaults["guidance_scale"].default if guidance_scale is None else guidance_scale
    for name, value in {"num": num, "steps": steps, "batch_size": batch_size}.items():
        if value < 1:
            raise UserError(f"{name} must be at least 1, got {value}.")

    jobs = [(prompt, seed + j) for prompt in prompts for j in range(num)]
    drawings = []
    for start in range(0, len(jobs), batch_size):
        batch = jobs[start : start + batch_size]
        images = pipe(  # pyright: ignore[reportCallIssue]
            prompt=[prompt for prompt, _ in batch],
            generator=[
                torch.Generator().manual_seed(s) for _, s in batch
            ],  # on the CPU: the same noise on every device
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
            **call_options(pipe, resolution),
        ).images
        for image, (prompt, s) in zip(images, batch):
            settings = {"prompt": prompt, "seed": s, "steps": steps, "guidance_scale": guidance_scale}
            drawings.append(Drawing(image, settings))
    return drawings


def save_images(drawings: Iterable[Drawing], folder: str | Path) -> list[Path]:
    """Write each picture as PNG with its settings inside (see `read_settings`); return the files, in order."""
    files = []
    for index, drawing in enumerate(drawings):
        words = re.sub(r"\W+", "-", str(drawing.settings.get("prompt", "")).lower()).strip("-")[:60]
        file = Path(folder) / f"{index:03d}-{words}-seed{drawing.settings.get('seed', 0)}.png"
        save_png(drawing.image, file, drawing.settings)
        files.append(file)
    return files


def save_png(image: Image.Image, file: str | Path, settings: dict[str, Any] | None = None) -> None:
    """Write one PNG, whole or not at all, with `settings` as JSON in its text chunk "atomtune".

    Raises `UserError` if there is a file of that name without such a chunk, which is not ours to replace.
    """
    refuse_other_image(file)
    metadata = PngImagePlugin.PngInfo()
    metadata.add_text("atomtune", json.dumps(settings or {}, ensure_ascii=False))
    with atomic_file(file) as temporary:
        image.save(temporary, format="PNG", pnginfo=metadata)


def refuse_other_image(file: str | Path) -> None:
    """Raise `UserError` if there is a file that `save_png` did not write."""
    if Path(file).exists() and not _is_ours(Path(file)):
        raise UserError(f"{file} is there already and is not an image that atomtune drew: choose another folder.")


def _is_ours(file: Path) -> bool:
    try:
        with Image.open(file) as image:
            return "atomtune" in image.info
    except (OSError, ValueError, SyntaxError):  # Pillow raises all three for what is no image
        return False


def read_settings(file: str | Path) -> dict[str, Any]:
    """The settings inside a PNG of ours."""
    with Image.open(file) as image:
        return json.loads(image.info.get("atomtune", "{}"))


def grid(
    rows: Sequence[Sequence[Image.Image]], row_labels: Sequence[str], column_labels: Sequence[str] = ()
) -> Image.Image:
    """One white sheet: a row of pictures for each label on the left, with `column_labels` above, wrapped to fit."""
    font = ImageFont.load_default(_TEXT)
    cell = max(_CELL, *(image.width for row in rows for image in row))
    left = 12 + max(int(font.getlength(line)) for label in row_labels for line in _wrap(label, font, cell))
    heads = [_wrap(label, font, cell) for label in column_labels]
    top = 8 + _TEXT * 5 // 4 * max((len(lines) for lines in heads), default=0)
    gap = 4
    columns = max(len(row) for row in rows)
    sheet = Image.new("RGB", (left + columns * (cell + gap), top + len(rows) * (cell + gap)), "white")
    draw = ImageDraw.Draw(sheet)
    for column, lines in enumerate(heads):
        draw.multiline_text((left + column * (cell + gap), 2), "\n".join(lines), "black", font)
    for r, (row, label) in enumerate(zip(rows, row_labels)):
        y = top + r * (cell + gap)
        draw.multiline_text((2, y + 2), "\n".join(_wrap(label, font, cell)), "black", font)
        for column, image in enumerate(row):
            sheet.paste(
                image.convert("RGB").resize((cell, cell), Image.Resampling.BICUBIC), (left + column * (cell + gap), y)
            )
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
