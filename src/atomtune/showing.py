"""A board as a person sees it: the map of its atoms, its dials, and its strongest atoms.

`AtomBoard` shows itself so in a notebook. The map has a row for each layer and a column for each id; the darker the
green, the more energy, mean |s_m| · ‖d_m‖, from 0 to that of the strongest atom of all layers; dropped atoms are red.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from atomtune.errors import UserError, counted
from atomtune.method.dictionary import SparseDictionary

GREEN, RED, NONE, DARK = (0, 112, 104), (202, 0, 32), (232, 232, 228), (64, 64, 64)
"""An atom of the most energy, a dropped atom, one that does nothing, or an id that the layer does not have, text."""
WIDTH, HEIGHT = 1280, 320  # pixels of the map, at most: whole ones for each atom
MARGIN, TEXT = 50, 17  # pixels at the left of the map for the layers' addresses, and their height
STRONGEST = 10


@dataclass(frozen=True, eq=False)
class AtomMap:
    """Layers × atoms: an image, and which atom is where in it."""

    image: Image.Image
    cell: tuple[int, int]
    """Width and height of an atom, in pixels."""
    ids: list[set[int]]
    """Of each row, from the top, the ids that the layer has."""
    numbers: list[int]
    """Of each row, the number of the layer."""

    @classmethod
    def of(cls, dictionaries: Sequence[SparseDictionary], energies: Sequence[Tensor]) -> AtomMap:
        """The map of these layers, with an energy for each of their atoms (all 0: an empty map)."""
        own = [d.id.tolist() for d in dictionaries]
        columns = max(max(ids) for ids in own) + 1
        most = max(float(energy.max()) for energy in energies) or 1.0
        pixels = np.full((len(own), columns, 3), NONE, np.float32)
        for row, (dictionary, energy) in enumerate(zip(dictionaries, energies)):
            opacity = (energy.float().cpu().numpy() / most)[:, None] ** 0.5
            colours = np.array(NONE) * (1 - opacity) + np.array(GREEN) * opacity
            if dictionary.kept is not None:
                colours[~dictionary.kept.bool().cpu().numpy()] = RED
            pixels[row, own[row]] = colours
        cell = (max(1, WIDTH // columns), max(1, min(20, HEIGHT // len(own))))
        image = Image.fromarray(pixels.round().astype(np.uint8))
        image = image.resize((columns * cell[0], len(own) * cell[1]), Image.Resampling.NEAREST)
        numbers = [int(d.layer) for d in dictionaries]
        return cls(_labelled(image, numbers, cell[1]), cell, [*map(set, own)], numbers)

    def address(self, x: int, y: int) -> str | None:
        """The address of the atom at a pixel; None where there is none."""
        row, column = y // self.cell[1], (x - MARGIN) // self.cell[0]
        there = 0 <= row < len(self.ids) and column in self.ids[row]
        return f"L{self.numbers[row]}[{column}]" if there else None


def _labelled(rows: Image.Image, numbers: Sequence[int], height: int) -> Image.Image:
    """The rows with the addresses of their layers at the left, of as many as there is room for."""
    image = Image.new("RGB", (MARGIN + rows.width, rows.height), NONE)
    image.paste(rows, (MARGIN, 0))
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(TEXT)
    for row in range(0, len(numbers), math.ceil(TEXT / height)):
        draw.text((MARGIN - 6, (row + 0.5) * height), f"L{numbers[row]}", DARK, font, anchor="rm")
    return image


def dials(board: Any) -> dict[str, str]:
    """The present settings, in words."""
    silent = sum(int((d.gain == 0).sum()) for d in board.dictionaries)
    turned = sum(int((d.gain != 1).sum()) for d in board.dictionaries) - silent
    points = ", ".join(f"{strength:g} at {t:g}" for t, strength in sorted(board.schedule.items(), reverse=True))
    return {
        "density": f"{board.density:.3g}",
        "floor": f"{board.floor:g}" if board.floor else "none",
        "atoms kept": f"{len(board.kept):,} of {len(board):,}",
        "gains": f"{counted(silent, 'atom')} silent, {turned:,} turned" if silent or turned else "all 1",
        "strength by timestep": points or "1 at all",
    }


def html(board: Any) -> str:
    """The board as HTML that stands alone: what a notebook shows."""
    settings = "".join(f"<tr><th>{name}</th><td>{escape(value)}</td></tr>" for name, value in dials(board).items())
    sizes = f"{counted(len(board), 'atom')} in {counted(len(board.layers), 'layer')}"
    head = f"<p><b>AtomBoard</b> of {escape(repr(board.adapter))}: {sizes}.</p><table>{settings}</table>"
    try:
        energies = board.mean_energy()
    except UserError:
        note = "No energies are known yet: draw a few images while the model is traced (atomtune.trace)."
        return (
            f"<p><b>AtomBoard</b> of {escape(repr(board.adapter))}: {head}.</p><table>{settings}</table><p>{note}</p>"
        )
    seen = AtomMap.of(board.dictionaries, energies)
    buffer = io.BytesIO()
    seen.image.save(buffer, "PNG")
    source = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    named = [(atom, float(value)) for atom, value in zip(board, (v for each in energies for v in each.tolist()))]
    named = sorted(named, key=lambda pair: -pair[1])[:STRONGEST]
    total = sum(float(each.sum()) for each in energies) or 1.0
    rows = "".join(
        f"<tr><td>{atom.address}</td><td>{escape(atom.name)}</td><td>{value / total:.1%}</td>"
        f"<td>{atom.gain:g}</td></tr>"
        for atom, value in named
    )
    layers = f"L{seen.numbers[0]} at the top to L{seen.numbers[-1]}"
    return (
        f"{head}<p>Layers ({layers}) and atoms, the darker the more energy; red are dropped:</p>"
        f'<img src="{source}" alt="Energy of every atom, a row for each layer" style="max-width: 100%">'
        "<p>Strongest atoms:</p><table><tr><th>atom</th><th>module</th><th>share of the energy</th><th>gain</th></tr>"
        f"{rows}</table>"
    )
