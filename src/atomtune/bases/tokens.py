"""Where the tokens of the image lie among all the tokens of a layer.

In some families a layer sees the image alone or the text alone; in others there are joint layers, which see both in one
sequence. The tokens of the image are in the order of its rows.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

TEXT = r"(^|\.)(add_[qkv]_proj|to_add_out|ff_context|norm1_context|txt_(in|mlp|mod)|context_(embedder|refiner)|"
TEXT += r"caption_projection|cap_embedder|time_caption_embed)(\.|$)"
CROSS_ATTENTION = TEXT + r"|attn2\.to_[kv]$"
NO_LAYER = r"(?!)"


@dataclass(frozen=True)
class ImageTokens:
    """The image's tokens in one layer: `rows` × `columns` of them, from `start` on in each sample."""

    rows: int
    columns: int
    start: int | tuple[int, ...] = 0
    """One for all samples, or one for each."""

    def samples(self, chosen: slice) -> ImageTokens:
        """The same for some rows of the batch."""
        return self if isinstance(self.start, int) else ImageTokens(self.rows, self.columns, self.start[chosen])

    def of(self, values: Tensor) -> Tensor:
        """Those of [samples, tokens, ...]."""
        count = self.rows * self.columns
        if isinstance(self.start, int):
            return values[:, self.start : self.start + count]
        return torch.stack([row[start : start + count] for row, start in zip(values, self.start, strict=True)])


@dataclass(frozen=True)
class Sight:
    """What one run of a denoiser shows to its layers."""

    tokens: Tokens
    grids: dict[int, tuple[int, int]]
    """Rows and columns of the image, by its number of tokens: several where layers work at several resolutions."""
    before: int | tuple[int, ...] | None
    """The number of tokens in front of the image in joint layers, for all samples or for each; None: all others."""

    def image(self, layer: str, tokens: int) -> ImageTokens | None:
        """The image's tokens among the `tokens` of the layer of that name; None if it does not see the image."""
        if re.search(self.tokens.text, layer):
            return None
        if not re.search(self.tokens.joint, layer):
            return ImageTokens(*self.grids[tokens]) if tokens in self.grids else None
        ((count, grid),) = self.grids.items()
        if tokens < count:  # a layer for the timestep
            return None
        return ImageTokens(*grid, tokens - count if self.before is None else self.before)


@dataclass(frozen=True)
class Tokens:
    """The layers of a family by what they see. Those that are neither `text` nor `joint` see the image alone."""

    text: str = TEXT
    """Regular expression for the names of layers that see the text alone."""
    joint: str = NO_LAYER
    """Regular expression for those that see both."""
    levels: int = 1
    """Resolutions at which layers work, each half of the one before."""

    def seen(self, config: Mapping[str, Any], arguments: Mapping[str, Any]) -> Sight | None:
        """What a run of the denoiser with these arguments shows; None if it cannot be told."""
        if (size := self.size(config, arguments)) is None:
            return None
        grids = {}
        for level in range(self.levels):
            rows, columns = (-(-side // 2**level) for side in size)
            grids.setdefault(rows * columns, (rows, columns))
        return Sight(self, grids, self.before(arguments))

    def size(self, config: Mapping[str, Any], arguments: Mapping[str, Any]) -> tuple[int, int] | None:
        """Rows and columns of the image's tokens."""
        sample, patch = next(iter(arguments.values())), config.get("patch_size") or 1
        return sample.shape[-2] // patch, sample.shape[-1] // patch

    def before(self, arguments: Mapping[str, Any]) -> int | tuple[int, ...] | None:
        """The number of tokens in front of the image in joint layers: by default, all others are."""
        return None


class ByIds(Tokens):
    """Packed images, whose tokens have ids (0, row, column, ...); other images that are shown have (1 or more, ...)."""

    def size(self, config: Mapping[str, Any], arguments: Mapping[str, Any]) -> tuple[int, int]:
        ids = arguments["img_ids"]
        ids = ids[0] if ids.ndim == 3 else ids
        own = ids[ids[:, 0] == 0]
        return int(own[:, 1].max()) + 1, int(own[:, 2].max()) + 1

    def before(self, arguments: Mapping[str, Any]) -> int:
        return arguments["encoder_hidden_states"].shape[1]


class ByShapes(Tokens):
    """Packed images, with their shapes [(frames, rows, columns), ...]."""

    def size(self, config: Mapping[str, Any], arguments: Mapping[str, Any]) -> tuple[int, int]:
        _, rows, columns = arguments["img_shapes"][0][0]
        return rows, columns


class ByMask(Tokens):
    """Each text is cut to its own length, and its image follows."""

    def before(self, arguments: Mapping[str, Any]) -> tuple[int, ...]:
        return tuple(arguments["encoder_attention_mask"].sum(1).long().tolist())


class ImageFirst(Tokens):
    """The images are listed; each one, made longer to a multiple of 32 tokens, comes before its text."""

    def size(self, config: Mapping[str, Any], arguments: Mapping[str, Any]) -> tuple[int, int] | None:
        image, (patch,) = arguments["x"][0], config["all_patch_size"]
        if isinstance(image, list):  # several images in one sequence, in another order
            return None
        return image.shape[-2] // patch, image.shape[-1] // patch

    def before(self, arguments: Mapping[str, Any]) -> int:
        return 0
