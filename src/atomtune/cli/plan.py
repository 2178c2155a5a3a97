"""`atomtune plan`: will it fit the card?"""

import dataclasses
import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from atomtune.errors import UserError
from atomtune.sizes import Resolution

if TYPE_CHECKING:
    from atomtune.planning.memory import MemoryPlan


def plan(
    *,
    base: str = "moji",
    resolution: Resolution | None = None,
    gpu: float | None = None,
    batch_size: int = 1,
    dtype: Literal["float32", "float16", "bfloat16"] = "bfloat16",
    quantize: Literal["int8", "fp8", "nf4"] | None = None,
) -> None:
    """Say how much memory training and drawing need on a card, and which options make it fit.

    Nothing is downloaded for a known base, no weights are loaded and nothing is computed: shapes alone go through the
    real model. The first table is what is on the card at the highest moment of each phase, in GiB. The second one says
    for each adapter, and each way of training and drawing, which cards it fits on, with an allowance for what is not
    counted.

    Args:
        base: Base model: "moji", a known base, a folder that holds a diffusers pipeline (its configurations suffice),
            or a hub name.
        resolution: Size of the images in pixels: 1024, or 1024x768, the width first (the base's own by default).
        gpu: Memory of your card in GB. The commands that fit it are printed.
        batch_size: Images in one forward pass.
        dtype: Precision of the frozen base on the card.
        quantize: Plan with the base's linear layers in so few bits, and not without; by default with and without.
    """
    from rich.console import Console

    from atomtune.devices import DTYPES
    from atomtune.planning import plan_memory

    if gpu is not None and not gpu > 0:
        raise UserError(f"--gpu must be above 0, got {gpu:g}.")
    found = plan_memory(base, resolution, batch_size, DTYPES[dtype], quantize)
    console = Console()
    for table in tables(found):
        console.print(table)
    if gpu is not None:
        for sentence in advice(found, gpu):
            console.print(sentence, soft_wrap=True, highlight=False)


def planned(options: Mapping[str, Any]) -> dict[str, Any]:
    """Of a recipe, or of the settings of a run, what a plan depends on: it is made for every kind of adapter, so what
    `customize` alone takes is left out."""
    from atomtune.training.config import CustomizeConfig

    own = inspect.signature(plan).parameters
    others = {field.name for field in dataclasses.fields(CustomizeConfig)} - own.keys()
    return {name: value for name, value in options.items() if name not in others}


def tables(found: "MemoryPlan") -> list[Any]:
    """What each phase needs, and which cards it fits on."""
    from rich.table import Column, Table

    from atomtune.planning.memory import CARDS, GIB

    images = f"{found.batch_size} image{'s' * (found.batch_size > 1)} at once"
    title = f"{found.base}, {found.resolution} pixels, {images}, {found.dtype}: GiB on the card"
    numbers = [Column(name, justify="right") for name in ("weights", "adapter", "optimizer", "activations", "peak")]
    phases = Table(Column("phase"), *numbers, title=title, title_justify="left")

    def row(label: str, memory: Any) -> None:
        parts = (memory.weights, memory.adapter, memory.optimizer, memory.activations, memory.peak)
        phases.add_row(label, *(f"{part / GIB:.2f}" if part else "–" for part in parts))

    by_way = {need.way.quantize: need.encoding for need in found.needs}
    for kind, encoding in by_way.items():
        for name, memory in encoding.items():
            if kind is None or memory != by_way.get(None, {}).get(name):
                row(f"encoding: {name}{f', {kind}' if kind else ''}", memory)
    cards = [Column(str(card), justify="right") for card in CARDS]
    fits = Table(
        Column("customize, generate"), Column("needs", justify="right"), *cards, title="Fits a card of so many GB",
        title_justify="left",
    )  # fmt: skip
    for adapter in found.adapters:
        phases.add_section()
        fits.add_section()
        needs = [need for need in found.needs if need.adapter == adapter]
        for need in needs:
            if need.way.offload is None:  # else as without: training has the denoiser on the card
                row(f"{adapter}: training, {need.way}", need.training)
            fits.add_row(f"{adapter}, {need.way}", *_fit(need.card))
        drawn = {dataclasses.replace(need.way, gradient_checkpointing=False): need.samples for need in needs}
        for way, memory in drawn.items():
            row(f"{adapter}: samples, {way}", memory)
        for drawing in [each for each in found.drawings if each.adapter == adapter]:
            row(f"{adapter}: drawing, {drawing.way}", drawing.memory)
            fits.add_row(f"{adapter}, drawing, {drawing.way}", *_fit(drawing.card))
    return [phases, fits]


def _fit(needed: int) -> list[str]:
    """What is needed in GiB, and whether each card has it."""
    from atomtune.planning.memory import CARDS, GIB

    return [f"{needed / GIB:.1f}", *("yes" if needed <= card * GIB else "–" for card in CARDS)]


def advice(found: "MemoryPlan", gpu: int | float) -> list[str]:
    """For each adapter, the command that trains it on a card of so many GB, or that there is none; then how to draw."""
    from atomtune.planning.memory import GIB
    from atomtune.shell import command_line

    sentences = []
    for adapter in found.adapters:
        need = found.fitting(adapter, gpu)
        if need is None:
            least = min((each for each in found.needs if each.adapter == adapter), key=lambda each: each.card)
            sentence = f"{adapter}: does not fit {gpu:g} GB; the least is {least.card / GIB:.1f} GB, {least.way}."
            smaller = " A smaller --resolution needs less." if least.without_activations <= gpu * GIB else ""
            sentences.append(sentence + smaller)
        else:
            words = ["IMAGES", "--class-name", "CLASS", "--out", "OUT", "--base", found.base]
            for name, value in found.options[adapter].items():
                for each in value if isinstance(value, list) else [value]:
                    words += [f"--{name.replace('_', '-')}", each]
            words += ["--resolution", found.resolution, "--batch-size", found.batch_size, *need.way.flags.split()]
            command = command_line("customize", *words)
            sentences.append(f"{adapter}: fits {gpu:g} GB, {need.card / GIB:.1f} needed: {command}")
        drawing = found.drawing(adapter, gpu)
        if drawing is None:
            least = min(each.card for each in found.drawings if each.adapter == adapter)
            sentences.append(f"{adapter}: drawing does not fit {gpu:g} GB; the least is {least / GIB:.1f} GB.")
        else:
            command = command_line("generate", "OUT", "--prompt", "...", *drawing.way.flags.split())
            sentences.append(f"{adapter}: drawing fits, {drawing.card / GIB:.1f} needed: {command}")
    return sentences
