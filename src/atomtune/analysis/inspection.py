"""`inspect`: everything the report shows of one adapter, drawn and measured.

Prompts of the user are drawn without and with the adapter; energies, and the influences by which the atoms are ordered,
are measured there. Names are proposed from other prompts, in which everything varies independently (`prompts`). Then
the strongest atoms are silenced and turned up one by one, all but the best are dropped, and the density is changed,
each time from the same noise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from atomtune.analysis import ladders
from atomtune.analysis.findings import AtomRow, AtomView, Comparison, Heat, Inspection, Others, Rung
from atomtune.analysis.heatmaps import overlay
from atomtune.analysis.importance import importance
from atomtune.analysis.influence import (
    Call,
    change,
    difference,
    influence_sizes,
    keeping_calls,
    largest_changes,
    some_of,
)
from atomtune.analysis.learnt import learnt
from atomtune.analysis.naming import Name, name_atoms, near_duplicates
from atomtune.analysis.overlap import overlap
from atomtune.analysis.prompts import crossed_prompts
from atomtune.analysis.watching import Watched, watch
from atomtune.bases import MOJI, denoiser
from atomtune.metrics import drift, load_judge, other_prompts
from atomtune.prompts import Subject
from atomtune.recording import AtomTrace
from atomtune.sampling import Drawing, generate
from atomtune.sizes import GivenSize
from atomtune.steering import AtomBoard, board
from atomtune.tracing import Trace, trace

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

TOP = 24  # atoms shown
NAMING = 96  # prompts for names
SAMPLES = 3  # heatmaps of each atom
SIZED = 4  # prompts on which the influence of all atoms is estimated
COMPARED = 2  # prompts of each atom, drawn without the atom and with it turned up
RUNG_PROMPTS = 4  # images of each rung of a ladder
OTHERS = (3, 2)  # prompts far from the class, and near it
BOOST = 8.0
CHANGED, SEEN = 0.1, 0.01  # a pixel's change from black to white, and the share of the pixels that must reach it
HEAT_WIDTH = 128  # pixels, at least: a map of 8 × 8 tokens is smoother than an image of 64 × 64 can show
OnProgress = Callable[[str, int, int], None]
"""Called with the name of a stage, how much of the stage is done, and its total."""


@torch.no_grad()
def inspect(
    pipe: DiffusionPipeline,
    prompts: Sequence[str],
    *,
    subjects: Sequence[Subject] = (),
    backgrounds: Sequence[str] | None = None,
    run: Mapping[str, Any] | None = None,
    adapter: str = "default",
    against: tuple[str, Sequence[str]] | None = None,
    top: int = TOP,
    naming_prompts: int = NAMING,
    seed: int = 0,
    steps: int | None = None,
    guidance_scale: float | None = None,
    resolution: GivenSize | None = None,
    batch_size: int = 8,
    on_progress: OnProgress = lambda stage, done, total: None,
) -> Inspection:
    """Draw and measure everything that the report shows. The board's dials are left as they were.

    `subjects` are what was learnt; `against` is the name of another adapter on the model and prompts of it, with which
    the overlap is measured. `backgrounds` are the colours on which names are looked for. `run` are the settings of
    `customize` that the adapter was trained with: its images are shown. `steps`, `guidance_scale` and `resolution` are
    the pipeline's own by default; the images for names take half the steps. `on_progress(stage, done, total)` is called
    as images are drawn.
    """
    model, atoms, prompts = denoiser(pipe), board(pipe, adapter), list(dict.fromkeys(prompts))
    classes, words = list(dict.fromkeys(each.class_name for each in subjects)), [str(each) for each in subjects]
    options: dict[str, Any] = {"guidance_scale": guidance_scale, "resolution": resolution}
    draw = Draw(pipe, prompts, seed, {**options, "steps": steps, "batch_size": batch_size}, on_progress)

    with model.disable_adapter():
        base = draw("base", prompts)
    with trace(model, adapter) as seen:
        adapted = draw("adapter", prompts)
    others = _others(draw, model, atoms, adapter, classes)

    crossed = crossed_prompts(words, classes, naming_prompts, torch.Generator().manual_seed(seed), backgrounds)
    half = max(3, (base[0].settings["steps"] + 1) // 2)
    texts = [prompt.text for prompt in crossed]
    watched = watch(
        pipe,
        texts,
        adapter,
        seed,
        half,
        **options,
        batch_size=2 * batch_size,
        on_progress=lambda done, total: on_progress("names", done, total),
    )
    names = name_atoms(watched, crossed, torch.Generator().manual_seed(seed))
    sizes = _influence_sizes(draw, adapter)
    rows = _rows(seen, names, sizes)
    strongest = [row for row in rows if row.influence > 0 and not row.like][:top]
    views = []
    for number, row in enumerate(strongest):
        views.append(_view(row, atoms, seen[row.address], watched, draw, adapted))
        on_progress("influence", number + 1, len(strongest))
    views.sort(key=lambda view: not view.comparisons)  # those whose effect can be seen first
    full = _one_scale([comparison for view in views for comparison in view.comparisons])

    pairs = zip(prompts, zip(_images(base), _images(adapted)))
    drawn = {prompt: images for prompt, images in pairs if not words or any(each in prompt for each in words)}
    scores = importance(atoms, traced=seen)
    rung_prompts = prompts[:RUNG_PROMPTS]
    ladder, densities = _rungs(
        draw, atoms, scores, rung_prompts, _images(base)[:RUNG_PROMPTS], _images(adapted)[:RUNG_PROMPTS]
    )
    return Inspection(
        subject=", ".join(words) or "this adapter",
        learnt=learnt(pipe, run, drawn, subjects),
        facts=_facts(atoms, seen, rows)
        | {
            "naming prompts": len(crossed),
            "naming steps": half,
            "full": full,
            "boost": BOOST,
            "sized": min(SIZED, len(prompts)),
        },
        prompts=prompts,
        base=_images(base),
        adapted=_images(adapted),
        others=others,
        rows=rows,
        views=views,
        phases=watched.phases,
        rung_prompts=rung_prompts,
        ladder=ladder,
        densities=densities,
        overlap=overlap(pipe, (rung_prompts, against[1]), (adapter, against[0]), seed=seed, steps=steps)
        if against
        else None,
    )


@dataclass
class Draw:
    """Draws prompts, every image from the noise of the same seed, and reports the progress."""

    pipe: DiffusionPipeline
    prompts: list[str]
    seed: int
    options: dict[str, Any]
    on_progress: OnProgress

    def __call__(self, stage: str, prompts: Sequence[str]) -> list[Drawing]:
        drawings = []
        for start in range(0, len(prompts), size := self.options["batch_size"]):
            drawings += generate(self.pipe, prompts[start : start + size], 1, self.seed, **self.options)
            self.on_progress(stage, len(drawings), len(prompts))
        return drawings

    def without_progress(self, prompts: Sequence[str]) -> list[Image.Image]:
        return _images(generate(self.pipe, prompts, 1, self.seed, **self.options))


def _others(draw: Draw, model: Any, atoms: AtomBoard, adapter: str, classes: Sequence[str]) -> Others:
    """A few prompts of each set of `other_prompts`: far from the classes, near them, and each without its token."""
    sets = other_prompts(classes, *OTHERS)
    prompts = [*sets["unrelated"], *sets["neighbours"], *sets["class"][: len(classes)]]
    with model.disable_adapter():
        base = draw("others", prompts)
    with trace(model, adapter) as seen:
        adapted = draw("others, adapter", prompts)
    before, after = _images(base), _images(adapted)
    judged = draw.pipe.name_or_path == MOJI
    moved = drift(before, after, load_judge().features if judged else None)
    return Others(prompts, before, after, moved, seen.silent, atoms.floor)


def _influence_sizes(draw: Draw, adapter: str) -> list[Tensor]:
    """How much each atom matters in images of the first prompts, drawn one by one because gradients need memory."""
    calls: list[Call] = []
    for prompt in draw.prompts[:SIZED]:
        drawn: list[Call] = []
        with keeping_calls(draw.pipe, drawn):
            generate(draw.pipe, prompt, 1, draw.seed, **draw.options)
        calls += some_of(drawn)
    return influence_sizes(draw.pipe, calls, adapter=adapter)


def _rows(seen: Trace, names: list[list[Name]], sizes: list[Tensor]) -> list[AtomRow]:
    total = sum(float(layer.mean_energy.sum()) for layer in seen.layers) or 1.0
    rows = []
    for layer, proposed, size in zip(seen.layers, names, sizes):
        energy, rate, influence = layer.mean_energy.tolist(), layer.firing_rate.tolist(), size.tolist()
        first = near_duplicates(layer.dictionary.atoms(), [str(name) for name in proposed], layer.mean_energy)
        for atom, id in zip(layer, ids := layer.ids.tolist()):
            stronger = first[atom.index]
            rows.append(
                AtomRow(
                    address=atom.address,
                    layer=layer.number,
                    id=id,
                    name=proposed[atom.index],
                    mean_energy=energy[atom.index],
                    share=energy[atom.index] / total,
                    influence=influence[atom.index],
                    firing_rate=rate[atom.index],
                    like="" if stronger is None else f"{layer.address}[{ids[stronger]}]",
                )
            )
    return sorted(rows, key=lambda row: -row.influence)


def _view(
    row: AtomRow, atoms: AtomBoard, seen: AtomTrace, watched: Watched, draw: Draw, adapted: list[Drawing]
) -> AtomView:
    """Maps of the atom in the images where it acts most, and two images without it and with it turned up."""
    atom = atoms[row.address]
    prompts = [draw.prompts[i] for i in seen.mean_energy_by_sample.topk(min(COMPARED, len(adapted))).indices]
    with dials_kept(atoms):
        atom.gain = 0.0
        without = draw.without_progress(prompts)
        atom.gain = BOOST
        boosted = draw.without_progress(prompts)
    comparisons = []
    for prompt, off, more in zip(prompts, without, boosted):
        on = adapted[draw.prompts.index(prompt)].image.convert("RGB")
        if (largest_changes(more, off) >= CHANGED).mean() >= SEEN:
            comparisons.append(Comparison(prompt, off, more, difference(more, off), change(on, off)))
    return AtomView(row, _heats(watched, row.address), comparisons, seen.mean_energy_by_timestep)


def _one_scale(comparisons: list[Comparison]) -> float:
    """Draw the differences anew so that the strongest hundredth of all changes is opaque; returns that change."""
    changes = [largest_changes(each.boosted, each.off).ravel() for each in comparisons]
    full = float(np.quantile(np.concatenate(changes), 0.99)) if comparisons else 1.0
    for each in comparisons:
        each.difference = difference(each.boosted, each.off, full)
    return full


def _heats(watched: Watched, address: str) -> list[Heat]:
    """The images in which the atom acts most, each with its map; all of them on one scale."""
    atom = watched.trace[address]
    layer, index = next(layer for layer in watched.layers if layer.trace is atom.layer), atom.index
    if not layer.grid:
        return []
    top = layer.by_phase[:, :, index].mean(1).topk(min(SAMPLES, len(watched.drawings))).indices.tolist()
    full = float(layer.maps[top, :, :, index].amax())
    heats = []
    for sample in top:
        image = watched.drawings[sample].image
        width = max(HEAT_WIDTH, min(image.width, 2 * HEAT_WIDTH))
        images = {"all": overlay(image, layer.heat(index, sample), full, width)}
        for number, phase in enumerate(watched.phases):
            images[phase] = overlay(image, layer.heat(index, sample, number), full, width)
        heats.append(Heat(watched.drawings[sample].settings["prompt"], images))
    return heats


def _rungs(
    draw: Draw,
    atoms: AtomBoard,
    scores: list[Tensor],
    prompts: list[str],
    base: list[Image.Image],
    full: list[Image.Image],
) -> tuple[list[Rung], list[Rung]]:
    """The ladder of numbers of atoms, and the ladder of densities."""
    alive = sum(int((score > 0).sum()) for score in scores)
    counts = ladders.counts(alive)
    ladder, densities = [Rung(0.0, "none: the base", base, 0.0)], []
    for number, count in enumerate(counts):
        with dials_kept(atoms):
            atoms.keep(count, by=scores)
            images = draw.without_progress(prompts)
        ladder.append(Rung(float(count), f"{count:,}", images, _reach(images, base, full)))
        draw.on_progress("ladder", number + 1, len(counts))
    ladder.append(Rung(float(len(atoms)), f"all {len(atoms):,}", full, 1.0, trained=True))

    dictionaries = atoms.dictionaries
    own = atoms.density
    wanted = ladders.densities(atoms)
    for number, density in enumerate(wanted):
        with dials_kept(atoms):
            if density != own:
                atoms.density = density
            used = sum(int(d.sigma.k.sum()) for d in dictionaries) / len(dictionaries)
            images = full if density == own else draw.without_progress(prompts)
        label = f"{used:.3g} atom{'s' * (used != 1)} for each token, in each layer"
        reach = 1.0 if density == own else _reach(images, base, full)
        densities.append(Rung(density, label, images, reach, density == own))
        draw.on_progress("density", number + 1, len(wanted))
    return ladder, densities


@contextmanager
def dials_kept(atoms: AtomBoard) -> Iterator[None]:
    """Restore, after the block, every dial that was changed inside it."""
    preset = atoms.preset()
    try:
        yield
    finally:
        atoms.apply(preset)


def _reach(images: list[Image.Image], base: list[Image.Image], full: list[Image.Image]) -> float:
    """1 - ‖image - adapter's‖ / ‖base's - adapter's‖ by mean absolute difference, over all images."""
    left = sum(change(image, wanted) for image, wanted in zip(images, full))
    whole = sum(change(image, wanted) for image, wanted in zip(base, full))
    return 1 - left / whole if whole else 1.0


def _images(drawings: Sequence[Drawing]) -> list[Image.Image]:
    return [drawing.image.convert("RGB") for drawing in drawings]


def _facts(atoms: AtomBoard, seen: Trace, rows: list[AtomRow]) -> dict[str, Any]:
    """Numbers at the head of the page."""
    energies = np.sort(torch.cat([layer.mean_energy for layer in seen.layers]).cpu().numpy())[::-1]
    half = int(np.searchsorted(energies.cumsum(), energies.sum() / 2)) + 1
    return {
        "atoms": len(atoms),
        "layers": len(atoms.layers),
        "alive": seen.alive,
        "named": sum(bool(row.name) for row in rows),
        "duplicates": sum(bool(row.like) for row in rows),
        "per token": seen.active_per_token,
        "hold half the energy": half,
    }
