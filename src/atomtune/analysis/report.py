"""The report: an `Inspection` as one HTML page with its images inside, which loads nothing from the network.

The page is `templates/report.html.j2` with its style and script; this module turns images into data URIs, and numbers
into the rows and curves of the template.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from atomtune.analysis import naming
from atomtune.analysis.findings import AtomRow, AtomView, Inspection
from atomtune.analysis.heatmaps import GREEN
from atomtune.errors import UserError
from atomtune.files import expanded, refuse_output, write_text

MARK = b'<p class="eyebrow">atomtune inspect</p>'  # in every page
LARGEST = 8_000_000  # bytes of a page
MOST_IMAGES = 12  # training images that are shown
QUALITIES = ((256, 90), (192, 75), (128, 60), (96, 40))  # width in pixels and WebP quality, tried until the page fits
SPARK = (120, 24)  # width and height of the curve over timesteps, in its own units


def refuse_other_file(file: Path) -> None:
    """Raise `UserError` if `file`, or the JSON beside it, exists and is not of atomtune, or the folder cannot be
    written."""
    refuse_output(file.parent)
    beside = file.with_suffix(".json")
    if beside.exists() and not _read(beside):
        raise UserError(f"{beside} exists already and is not of atomtune inspect: choose another name.")
    if file.exists() and not (file.is_file() and MARK in file.read_bytes()):
        raise UserError(f"{file} exists already and is not a report of atomtune inspect: choose another name.")


def write_report(inspection: Inspection, file: str | Path, made_by: dict[str, Any] | None = None) -> int:
    """Write the page, whole or not at all, under 8 MB; returns its size in bytes. `made_by` is shown at its foot.

    A JSON file of the same name holds the table of the atoms, for other programs (see `read_names`).
    """
    page = ""
    for width, quality in QUALITIES:
        page = render(inspection, made_by, width, quality)
        if len(page.encode()) < LARGEST:
            break
    write_text(expanded(file), page)
    heads = ("rank", "address", "name", "influence", "share", "firing_rate", "like", "evidence")
    atoms = [dict(zip(heads, _table_row(rank, row))) for rank, row in enumerate(inspection.rows, 1)]
    write_text(expanded(file).with_suffix(".json"), json.dumps({"atoms": atoms}))
    return len(page.encode())


def read_names(run: str | Path) -> dict[str, tuple[str, str]]:
    """By address, the proposed name of each atom that has one, and its evidence, as `inspect` wrote them into a run;
    none if it did not."""
    atoms = _read(expanded(run) / "report.json")
    return {atom["address"]: (atom["name"], atom["evidence"]) for atom in atoms if atom["name"]}


def _read(file: Path) -> list[dict[str, Any]]:
    """The table of atoms in the file; none if there is no such file, or another one."""
    try:
        atoms = json.loads(file.read_text(encoding="utf-8"))["atoms"]
        return [{name: str(atom[name]) for name in ("address", "name", "evidence")} for atom in atoms]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def render(
    inspection: Inspection, made_by: dict[str, Any] | None = None, width: int = QUALITIES[0][0], quality: int = 90
) -> str:
    """The page as text. Images are at most `width` pixels wide."""
    environment = Environment(
        loader=PackageLoader("atomtune.analysis"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"data_uri": _data_uris(width, quality), "anchor": _anchor, "spark": _spark}
    return environment.get_template("report.html.j2").render(
        inspection=inspection,
        made_by=made_by or {},
        naming=naming,
        most_images=MOST_IMAGES,
        duplicates=_duplicates(inspection.rows),
        map=_energy_map(inspection.rows),
        table=[_table_row(rank, row) for rank, row in enumerate(inspection.rows, 1)],
        spark_size=SPARK,
    )


def _data_uris(width: int, quality: int) -> Callable[[Image.Image], str]:
    """A filter from images to data URIs; an image used twice is encoded once."""
    known: dict[int, str] = {}

    def encoded(image: Image.Image) -> str:
        if id(image) not in known:
            known[id(image)] = _webp(image, width, quality)
        return known[id(image)]

    return encoded


def _webp(image: Image.Image, width: int, quality: int) -> str:
    if image.width > width:
        image = image.resize((width, round(width * image.height / image.width)), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=quality, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def _png(pixels: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _anchor(address: str) -> str:
    """`L3[139]` as an id in the page: L3-139."""
    return address.replace("[", "-").rstrip("]")


def _energy_map(rows: list[AtomRow]) -> dict[str, Any]:
    """For each layer an image one pixel high, with one pixel for each atom, whose opacity is the square root of
    energy."""
    columns = max(row.id for row in rows) + 1
    most = max(row.mean_energy for row in rows) or 1.0
    layers = {}
    for number in sorted({row.layer for row in rows}):
        pixels = np.zeros((1, columns, 4), np.uint8)
        pixels[..., :3] = GREEN
        own = [row for row in rows if row.layer == number]
        for row in own:
            pixels[0, row.id, 3] = round(255 * (row.mean_energy / most) ** 0.5)
        share = sum(row.share for row in own)
        layers[number] = {"src": _png(pixels), "share": share, "atoms": len(own)}
    return {"columns": columns, "layers": layers}


def _duplicates(rows: list[AtomRow]) -> dict[str, list[str]]:
    """For each atom the addresses of its near duplicates, the strongest first."""
    found: dict[str, list[str]] = {row.address: [] for row in rows}
    for row in rows:
        if row.like:
            found[row.like].append(row.address)
    return found


def _table_row(rank: int, row: AtomRow) -> list[Any]:
    """What the script needs of an atom. Numbers are rounded, so that thousands of rows stay small."""
    evidence = "; ".join(str(item) for item in row.name.evidence)
    numbers = [float(f"{value:.4g}") for value in (row.influence, row.share, row.firing_rate)]
    return [rank, row.address, str(row.name), *numbers, row.like, evidence]


def _spark(view: AtomView) -> str:
    """The energy at each timestep as an SVG path of bars, sampling from left to right."""
    values = list(view.mean_energy_by_timestep.values())
    most, step = max(values) or 1.0, SPARK[0] / len(values)
    bars = []
    for place, value in enumerate(values):
        height = SPARK[1] * value / most
        bars.append(f"M{place * step:.2f} {SPARK[1]}v{-height:.2f}h{0.8 * step:.2f}v{height:.2f}z")
    return "".join(bars)
