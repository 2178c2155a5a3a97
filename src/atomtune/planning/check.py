"""Before a run on a card: does it fit?"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable

import torch

from atomtune.errors import UserError
from atomtune.planning.memory import GIB, MODEL, WAYS, Sizes, Way, needs, side_multiple
from atomtune.planning.parts import find_parts
from atomtune.sizes import Size
from atomtune.training import buckets
from atomtune.training.config import CustomizeConfig

logger = logging.getLogger(__name__)


def warning(config: CustomizeConfig, shapes: Iterable[tuple[int, int]], dtype: torch.dtype, free: int) -> str | None:
    """One sentence if the run would need more than `free` bytes of the card, with the options that would fit; else
    None, and also where the memory cannot be told (a denoiser that is not known, a hub that does not answer).

    Nothing is downloaded but the configurations of a base that is not known. `shapes` are width and height in pixels of
    the images: with aspect buckets, the largest in use counts.
    """
    own = Way(config.gradient_checkpointing, config.quantize, MODEL if config.offload else None)
    try:
        parts = find_parts(config.base)
        sizes = Sizes.of(parts, None if config.resolution is None else Size.of(config.resolution), dtype)
        if config.aspect_ratio_buckets:
            choices = buckets.sizes(sizes.resolution, side_multiple(parts, sizes.resolution, sizes.latents))
            used = [buckets.nearest(*shape, choices) for shape in shapes]
            sizes = Sizes.of(parts, max(sizes.resolution, *used, key=lambda size: size.width * size.height), dtype)
        plain = sizes.adapted(config, checkpointing=False)
        (need,) = needs(sizes, config.method, config, plain, [own])
    except (UserError, RuntimeError) as error:  # advice, which does not stop a run
        logger.info("the memory of this run is not known: %s", error)
        return None
    if need.card <= free:
        return None
    said = f"this run needs about {need.card / GIB:.1f} GB on the card, and {free / GIB:.1f} GB are free: "
    with contextlib.suppress(UserError):  # checkpointing does not go with all options
        for other in needs(sizes, config.method, config, plain, [way for way in WAYS if way != own]):
            if other.card <= free:
                return f"{said}with {other.way.flags} it needs {other.card / GIB:.1f} GB."
    return f"{said}no option makes it fit; choose a smaller resolution or another base (see `atomtune plan`)."
