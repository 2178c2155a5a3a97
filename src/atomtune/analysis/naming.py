"""A name for each atom, proposed, with its evidence; no name where the evidence is weak.

Rows are observations: an image, or one phase or one region of an image. p is the share of this atom in all that fired
there; f is 1 if a factor (a word of the prompt, a phase, a region) was present, else 0. An atom answers to a factor if

    lift      = E[p | f present] / E[p | f absent]  how many times as much of all that fires is this atom's
    explained = corr(p, f)²                         the share of the variance of p that the factor explains
    chance    = share of shuffles of the rows whose best factor explains as much

are `lift` >= 1.5, `explained` >= 0.1 and `chance` <= 0.002. Each shuffle counts with the best of all its factors, so
testing many factors does not make names easier to get. About one atom in 500 gets a name by accident.

A name needs enough evidence: the atom fired in at least 6 images where the factor was present, 6 images were without
it (or had a phase or a region without it), and the atom fired at 3 timesteps at least.

Training often makes several atoms of one: `near_duplicates` finds those of a layer with one name and one direction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor

from atomtune.analysis.prompts import CrossedPrompt, Factor
from atomtune.analysis.watching import LayerActivity, Watched
from atomtune.errors import UserError
from atomtune.metrics.pixels import drawn_pixels

LIFT, EXPLAINED, CHANCE = 1.5, 0.1, 0.002
IMAGES, STEPS = 6, 3
ONE_DIRECTION = 0.8  # least |cosine| of near duplicates
SHUFFLES, AT_ONCE = 1000, 25
PARTS = [Factor(part, "part") for part in ("on the drawing", "outline of the drawing", "around the drawing")]


@dataclass(frozen=True)
class Evidence:
    """One factor that an atom answers to."""

    factor: Factor
    lift: float
    explained: float
    chance: float

    def __str__(self) -> str:
        times = f"{self.lift:.1f}× as much" if self.lift < 100 else "hardly ever without"
        return f"{self.factor.word}: {times}, explains {self.explained:.0%}"


@dataclass(frozen=True)
class Name:
    """At most one factor of each kind, the one that explains most first; the first three make the name. Empty if the
    evidence is weak."""

    evidence: tuple[Evidence, ...] = ()

    def __str__(self) -> str:
        return ", ".join(item.factor.word for item in self.evidence[:3])

    def __bool__(self) -> bool:
        return bool(self.evidence)


def evidence(
    activity: Float[Tensor, "rows atoms"],
    presence: Float[Tensor, "rows factors"],
    factors: Sequence[Factor],
    generator: torch.Generator | None = None,
    group: int | None = None,
    shuffles: int = SHUFFLES,
) -> list[list[Evidence]]:
    """For each atom, the factors it answers to, the one that explains most first.

    `activity` is how much each atom fired, 0 or more; `presence` is 0 or 1. With `group`, rows come in groups of that
    many (the regions of one image) and are shuffled inside their group only. Raises `UserError` for shapes that do
    not fit.
    """
    if activity.shape[0] != presence.shape[0] or presence.shape[1] != len(factors):
        raise UserError(
            f"activity {tuple(activity.shape)} and presence {tuple(presence.shape)} must have one row for each "
            f"observation, presence one column for each of the {len(factors)} factors."
        )
    share = activity / activity.sum(1, keepdim=True).clamp(min=torch.finfo(activity.dtype).tiny)
    present, absent = presence.sum(0).clamp(min=1), (1 - presence).sum(0).clamp(min=1)
    without = share.T @ (1 - presence) / absent
    lift = share.T @ presence / present / without.clamp(min=1e-9)
    p, f = _standardized(share), _standardized(presence)
    correlation = p.T @ f / len(p)  # [atoms, factors]
    beaten = torch.zeros_like(correlation)
    for start in range(0, shuffles, AT_ONCE):  # many shuffles in one product
        orders = [_shuffle(len(p), group, generator) for _ in range(min(AT_ONCE, shuffles - start))]
        null = p.T @ torch.cat([f[order] for order in orders], 1) / len(p)
        for best in null.unflatten(1, (len(orders), -1)).amax(2).unbind(1):
            beaten += best[:, None] >= correlation
    chance = (beaten + 1) / (shuffles + 1)
    explained = correlation.square()
    passing = (correlation > 0) & (lift >= LIFT) & (explained >= EXPLAINED) & (chance <= CHANCE)
    passing &= _in_enough_images(activity, presence, group or 1)
    found: list[list[Evidence]] = [[] for _ in range(activity.shape[1])]
    for atom, factor in passing.nonzero().tolist():
        numbers = (float(value[atom, factor]) for value in (lift, explained, chance))
        found[atom].append(Evidence(factors[factor], *numbers))
    return [sorted(items, key=lambda item: -item.explained) for items in found]


def _in_enough_images(activity: Tensor, presence: Tensor, group: int) -> Bool[Tensor, "atoms factors"]:
    """Whether the atom fired in `IMAGES` images where the factor was present, and as many were without the factor."""
    fired, has = ((values > 0).float().unflatten(0, (-1, group)) for values in (activity, presence))
    with_factor = torch.stack([(image.T @ factors) > 0 for image, factors in zip(fired, has)]).sum(0)
    without = (has < 1).any(1).sum(0)
    return (with_factor >= IMAGES) & (without >= IMAGES)


def name(items: Sequence[Evidence]) -> Name:
    """The best factor of each kind."""
    best: dict[str, Evidence] = {}
    for item in sorted(items, key=lambda item: -item.explained):
        best.setdefault(item.factor.kind, item)
    return Name(tuple(best.values()))


def name_atoms(
    watched: Watched, prompts: Sequence[CrossedPrompt], generator: torch.Generator | None = None
) -> list[list[Name]]:
    """A name for every atom, by layer, from images of prompts whose factors vary independently.

    The factors are the words of the prompts (shuffled over images), the phase of sampling (shuffled within each image)
    and the region of the image (shuffled within each image): left, right, top, bottom, and, if the background is
    plain, as moji's are, whether the region is on the drawing, on its outline, or around it.
    """
    if len(prompts) != len(watched.drawings):
        raise UserError(f"{len(watched.drawings)} images cannot be named by {len(prompts)} prompts: give one each.")
    words = sorted({factor for prompt in prompts for factor in prompt.factors}, key=lambda f: (f.kind, f.word))
    word_presence = torch.tensor([[float(word in prompt.factors) for word in words] for prompt in prompts])
    return [_name_layer(layer, watched, words, word_presence, generator) for layer in watched.layers]


def _name_layer(
    layer: LayerActivity,
    watched: Watched,
    words: list[Factor],
    word_presence: Tensor,
    generator: torch.Generator | None,
) -> list[Name]:
    by_phase = layer.by_phase
    samples, phases, _ = by_phase.shape
    found = [evidence(by_phase.mean(1), word_presence, words, generator)]
    if phases > 1:
        when = [Factor(f"{phase} steps", "phase") for phase in watched.phases]
        found.append(evidence(by_phase.flatten(0, 1), torch.eye(phases).repeat(samples, 1), when, generator, phases))
    if layer.region_grid:
        images = [drawing.image for drawing in watched.drawings]
        presence, where = region_factors(images, layer.region_grid)
        size = presence.shape[1]
        # Thousands of rows: `chance` hardly ever decides here, so fewer shuffles are enough.
        found.append(evidence(layer.by_region.flatten(0, 1), presence.flatten(0, 1), where, generator, size, 500))
    steps = torch.stack([guided.fired > 0 for _, guided in layer.trace.by_timestep.values()]).sum(0).tolist()
    names = [name([item for items in atom for item in items]) for atom in zip(*found)]
    return [each if fired >= STEPS else Name() for each, fired in zip(names, steps)]


def near_duplicates(
    directions: Float[Tensor, "atoms out"], names: Sequence[str], energy: Float[Tensor, " atoms"]
) -> list[int | None]:
    """For each atom of a layer the stronger atom of the same name whose direction d it shares, |cos| >= 0.8; None for
    one that has no stronger one, or never fires. The stronger atom is itself nobody's near duplicate."""
    unit, energy = torch.nn.functional.normalize(directions.cpu(), dim=1), energy.cpu()
    alike = (unit @ unit.T).abs() >= ONE_DIRECTION
    first: list[int | None] = [None] * len(names)
    leaders: list[int] = []
    for atom in energy.argsort(descending=True, stable=True).tolist():
        if energy[atom] > 0:
            first[atom] = next((other for other in leaders if alike[atom, other] and names[atom] == names[other]), None)
            if first[atom] is None:
                leaders.append(atom)
    return first


def region_factors(
    images: Sequence[Image.Image], grid: tuple[int, int]
) -> tuple[Float[Tensor, "samples regions factors"], list[Factor]]:
    """For each region of each image, which factors it has. Parts of an image whose background is not plain: none."""
    rows, columns = grid
    y, x = ((torch.arange(n) + 0.5) / n for n in grid)
    sides = {
        "left": (x < 1 / 3).expand(rows, columns),
        "right": (x > 2 / 3).expand(rows, columns),
        "top": (y < 1 / 3)[:, None].expand(rows, columns),
        "bottom": (y > 2 / 3)[:, None].expand(rows, columns),
    }
    place = torch.stack([side.flatten().float() for side in sides.values()], 1)  # [regions, 4]
    parts = torch.stack([_parts(image, grid) for image in images])
    presence = torch.cat([place.expand(len(images), -1, -1), parts], 2)
    return presence, [*(Factor(f"{side} side", "side") for side in sides), *PARTS]


def _parts(image: Image.Image, grid: tuple[int, int]) -> Float[Tensor, "regions 3"]:
    """On the drawing, its outline, or behind it, by how much of the region is drawn."""
    drawn = drawn_pixels(image)
    if drawn is None or not drawn.any():
        return torch.zeros(grid[0] * grid[1], 3)
    cover = _cover(drawn, grid)
    return torch.stack([cover > 0.85, (cover >= 0.15) & (cover <= 0.85), cover < 0.15], 1).float()


def _cover(drawn: Bool[np.ndarray, "height width"], grid: tuple[int, int]) -> Float[Tensor, " regions"]:
    return torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(drawn).float()[None], grid).flatten()


def _standardized(columns: Float[Tensor, "rows columns"]) -> Float[Tensor, "rows columns"]:
    """Mean 0 and standard deviation 1 down each column; a constant column is 0."""
    centred = columns - columns.mean(0)
    deviation = centred.square().mean(0).sqrt()
    return torch.where(deviation > 1e-12, centred / deviation.clamp(min=1e-12), 0.0)


def _shuffle(rows: int, group: int | None, generator: torch.Generator | None) -> Tensor:
    """A random order of the rows, or of the rows inside each group."""
    if group is None:
        return torch.randperm(rows, generator=generator)
    inside = torch.rand(rows // group, group, generator=generator).argsort(1)
    return (inside + torch.arange(0, rows, group)[:, None]).flatten()
