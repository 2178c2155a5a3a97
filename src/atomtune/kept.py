"""What is kept of one run of a model: which rows it had, sums over a layer's tokens, and its nonzero codes."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from atomtune.bases.tokens import ImageTokens, Sight

NO_GUIDANCE: ContextVar[bool] = ContextVar("no guidance", default=False)
"""Whether it is known that images are drawn without guidance: two of the same noise are then no halves of it."""


@dataclass
class ModelRun:
    """One run of the model: the timesteps of its rows, the rows that have the prompt, and its samples."""

    timesteps: Tensor | None = None
    halves: Literal["guided", "both", "both, guided first", "unguided"] = "guided"
    """Whether its rows have the prompt, do not have it (the other half of guidance), or one half of the batch each."""
    first_sample: int = 0
    samples: int = 0
    sight: Sight | None = None
    """What it shows to its layers, of a known family of image models."""

    def rows(self, batch: int) -> tuple[range, range]:
        """The unguided rows of a layer's batch, and the guided ones."""
        half = batch // 2
        return {
            "guided": (range(0), range(batch)),
            "both": (range(half), range(half, batch)),
            "both, guided first": (range(half, batch), range(half)),
            "unguided": (range(batch), range(batch, batch)),
        }[self.halves]

    def timesteps_of(self, batch: int) -> list[float | None]:
        """The timestep of each row of a layer's batch; None if it is not known."""
        times: list[float] = [] if self.timesteps is None else self.timesteps.tolist()
        if len(set(times)) == 1:
            return [times[0]] * batch
        return [*times] if len(times) == batch else [None] * batch


@dataclass
class TokenSums:
    """Sums over tokens: their number, the numbers in which each atom fired and in which no atom did, Σ|s_m| and
    max|s_m|."""

    fired: Int[Tensor, " atoms"]
    magnitude: Float[Tensor, " atoms"]
    peak: Float[Tensor, " atoms"]
    silent: Int[Tensor, ""]
    tokens: int = 0

    @classmethod
    def zero(cls, atoms: int, device: torch.device) -> TokenSums:
        nothing = torch.zeros(atoms, device=device)
        return cls(nothing.long(), nothing, nothing.clone(), nothing.new_zeros((), dtype=torch.long))

    def add(self, other: TokenSums) -> TokenSums:
        self.tokens += other.tokens
        self.fired += other.fired
        self.magnitude += other.magnitude
        self.silent += other.silent
        self.peak = torch.maximum(self.peak, other.peak)
        return self


@dataclass
class KeptCodes:
    """The nonzero codes of one layer in one run of the model: `values` at flat indices into `shape` [samples, tokens,
    atoms]."""

    timestep: float | None
    first_sample: int
    shape: tuple[int, ...]
    indices: Int[Tensor, " nonzero"]
    values: Float[Tensor, " nonzero"]
    image: ImageTokens | None = None

    @classmethod
    def of(
        cls,
        codes: Float[Tensor, "samples tokens atoms"],
        timestep: float | None,
        first_sample: int,
        image: ImageTokens | None = None,
    ) -> KeptCodes:
        indices = codes.flatten().nonzero().flatten()
        values = codes.flatten()[indices].half()
        small = codes.numel() < 2**31
        return cls(timestep, first_sample, tuple(codes.shape), indices.int() if small else indices, values, image)

    def of_image(self, dense: Float[Tensor, "samples tokens atoms"]) -> Float[Tensor, "samples image_tokens atoms"]:
        """Dense codes at the tokens of the image; at all, where these are not known."""
        return dense if self.image is None else self.image.of(dense)

    def add_to(self, dense: Float[Tensor, "samples tokens atoms"], row: int | None, magnitude: bool = False) -> None:
        """Add s, or |s|, to dense float32 codes on the CPU: of all atoms, or of the one in `row` to [.., .., 1]."""
        indices, values, atoms = self.indices, self.values, self.shape[2]
        if row is not None:
            own = indices % atoms == row
            indices, values = indices[own] // atoms, values[own]
        values = values.float().cpu()
        dense.view(-1).index_add_(0, indices.long().cpu(), values.abs() if magnitude else values)
