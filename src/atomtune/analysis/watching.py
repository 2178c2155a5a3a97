"""Draw a set of prompts and record, for every atom, how much it acted: in which image, when, and where.

Codes are reduced batch by batch, so memory does not grow with the number of steps: a thousand-pixel base with 7,168
atoms takes about 10 MB an image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from atomtune.analysis.heatmaps import grid_of, phases, pooled
from atomtune.bases import denoiser
from atomtune.recording import LayerTrace
from atomtune.sampling import Drawing, generate
from atomtune.sizes import GivenSize
from atomtune.tracing import Trace, trace

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

CELLS, REGIONS = 16, 8  # most rows and columns of the maps that are shown, and of those that names are made from


@dataclass(eq=False)
class LayerActivity:
    """What the atoms of one layer did in each image. `grid` is None where tokens are not patches of the image."""

    trace: LayerTrace
    """Sums over all images. Its codes are deleted after each batch."""
    grid: tuple[int, int] | None = None
    region_grid: tuple[int, int] | None = None
    _phase: list[Tensor] = field(default_factory=list)
    _region: list[Tensor] = field(default_factory=list)
    _map: list[Tensor] = field(default_factory=list)

    @property
    def by_phase(self) -> Float[Tensor, "samples phases atoms"]:
        """Mean of |s_m| over the timesteps of a phase and the tokens, those of the image if there are any."""
        return torch.cat(self._phase)

    @property
    def by_region(self) -> Float[Tensor, "samples regions atoms"]:
        """Mean of |s_m| over the timesteps and the tokens of a region of the image."""
        return torch.cat(self._region)

    @property
    def maps(self) -> Float[Tensor, "samples phases cells atoms"]:
        """Mean of |s_m| over the timesteps of a phase, in each cell of `grid`."""
        return torch.cat(self._map)

    def heat(self, index: int, sample: int, phase: int | None = None) -> Float[Tensor, " cells"]:
        """The map of one atom in one image, in one phase or as the mean over them."""
        maps = self.maps[sample, :, :, index].float()
        return maps.mean(0) if phase is None else maps[phase]


@dataclass(eq=False)
class Watched:
    """The images that were drawn and what every layer did in them."""

    drawings: list[Drawing]
    layers: list[LayerActivity]
    phases: list[str]
    trace: Trace


@torch.no_grad()
def watch(
    pipe: DiffusionPipeline,
    prompts: Sequence[str],
    adapter: str = "default",
    seed: int = 0,
    steps: int | None = None,
    guidance_scale: float | None = None,
    resolution: GivenSize | None = None,
    batch_size: int = 8,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Watched:
    """Draw each prompt once; every batch has another seed, so that no atom is judged by a single noise.

    `on_progress(done, total)` is called after each batch of images.
    """
    drawings: list[Drawing] = []
    names: list[str] = []
    with trace(denoiser(pipe), adapter, codes=True) as watched:
        layers = [LayerActivity(layer) for layer in watched.layers]
        for start in range(0, len(prompts), batch_size):
            batch = prompts[start : start + batch_size]
            drawings += generate(pipe, batch, 1, seed, steps, guidance_scale, batch_size, resolution)
            seed += 1
            for layer in layers:
                names = _reduce(layer, drawings[-1].image.width / drawings[-1].image.height)
            on_progress(len(drawings), len(prompts))
    return Watched(drawings, layers, names, watched)


def _reduce(layer: LayerActivity, aspect: float) -> list[str]:
    """Turn the codes of one batch into activity, and delete them."""
    kept = layer.trace.kept_codes
    times = phases({codes.timestep for codes in kept if codes.timestep is not None})
    magnitudes, total = [], 0.0
    layer.grid = grid_of(layer.trace, kept[0].shape[1], aspect)
    magnitudes_of = layer.trace.maps if layer.grid else layer.trace.means
    maps = []
    for steps in times.values():
        magnitude = magnitudes_of(steps, magnitude=True)
        magnitudes.append(magnitude.mean(1))
        total = total + magnitude * len(steps)
        if layer.grid:
            maps.append(pooled(magnitude, layer.grid, CELLS).half())
    layer._phase.append(torch.stack(magnitudes, 1))
    if layer.grid and isinstance(total, Tensor):
        total = total / sum(map(len, times.values()))
        layer._region.append(pooled(total, layer.grid, REGIONS))
        layer._map.append(torch.stack(maps, 1))
        layer.region_grid = (min(layer.grid[0], REGIONS), min(layer.grid[1], REGIONS))
        layer.grid = (min(layer.grid[0], CELLS), min(layer.grid[1], CELLS))
    layer.trace.kept_codes.clear()
    return list(times)
