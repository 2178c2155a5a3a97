"""Noised training images that stay the same from call to call, to measure the importance of atoms on.

    examples = training_examples(pipe, "photos/teapot", "a sks teapot")
    importance(pipe, by="gradient", loss=examples.losses)
    influence(pipe, "L3", examples.outputs)

The rest of `analysis` takes any callable, so the atoms of a text model are measured in the same way with its own loss.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from atomtune import bases
from atomtune.bases.families import family_of
from atomtune.errors import check_seed
from atomtune.sizes import GivenSize
from atomtune.training import data, encoding
from atomtune.training.objectives import Noised, prediction_loss

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


@dataclass(eq=False)
class Examples:
    """A batch on which the denoiser is run again and again, with the present dials of its atoms."""

    pipe: DiffusionPipeline
    noised: Noised
    conditionings: list[dict[str, Any]]
    """One for each example."""

    def outputs(self) -> Float[Tensor, "examples channels height width"]:
        """The output of the denoiser, as plain latents."""
        denoiser = bases.denoiser(self.pipe)
        return encoding.predict(denoiser, self.noised, self.conditionings, denoiser.dtype, family_of(self.pipe))

    def losses(self) -> Float[Tensor, " examples"]:
        """The training loss of each example."""
        return prediction_loss(self.outputs(), self.noised)

    def one_by_one(self) -> Iterator[Examples]:
        """The same examples in batches of one, for models whose gradients do not fit into memory otherwise."""
        for row in range(len(self.noised.timesteps)):
            one = slice(row, row + 1)
            yield Examples(self.pipe, self.noised.rows(one), self.conditionings[one])


@torch.no_grad()
def training_examples(
    pipe: DiffusionPipeline,
    images: str | Path,
    caption: str,
    draws: int = 4,
    seed: int = 0,
    resolution: GivenSize | None = None,
    alpha_mask: bool = False,
) -> Examples:
    """Every image of a folder, `draws` times, each with noise and a timestep of its own.

    `caption` is for images that have no caption of their own, and `alpha_mask` lets their alpha count in the loss, see
    `atomtune.customize`. The pipeline needs its text encoder and its autoencoder. Raises `UserError` for a folder
    without images, and for a pipeline that does not draw as training assumes (see `training.observed`).
    """
    check_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    found = data.find_examples(Path(images), caption)
    size = bases.resolution_for(pipe, resolution)
    words = next(iter(found.values()))
    answer, objective = encoding.encode_prompt(pipe, words, size), encoding.objective_of(pipe)
    encoding.check(pipe, objective, words, answer, size)
    pictures = [data.read_picture(file, [size], alpha_mask) for file in found]
    latents = encoding.encode_images(pipe, [each.image for each in pictures], [each.alpha for each in pictures])
    told = [encoding.told_sizes(pipe, each.original, size) for each in pictures]
    asked = [(words, tuple(each.items())) for words, each in zip(found.values(), told)]
    known = {each: encoding.encode_caption(pipe, each[0], size, **dict(each[1])) for each in dict.fromkeys(asked)}
    index = list(range(len(found))) * draws
    noised = replace(objective.add_noise(latents.draw(index, generator), generator), mask=latents.masks(index))
    denoiser = bases.denoiser(pipe)
    return Examples(pipe, noised.to(denoiser.device), [known[each] for each in asked] * draws)
