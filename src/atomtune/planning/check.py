"""Before a run on a card: does it fit?"""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING

import torch

from atomtune.errors import UserError
from atomtune.planning.memory import GIB, WAYS, Need, Sizes, Way, needs
from atomtune.planning.parts import parts_of
from atomtune.sizes import Size
from atomtune.training.config import CustomizeConfig

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

logger = logging.getLogger(__name__)


def warning(
    pipe: DiffusionPipeline, config: CustomizeConfig, resolution: Size, dtype: torch.dtype, free: int
) -> str | None:
    """One sentence if the run would need more than `free` bytes of the card, with the options that would fit; else
    None, and also where the memory cannot be told (a denoiser that is not known)."""
    own = Way(config.gradient_checkpointing, config.quantize)
    try:
        sizes = Sizes.of(parts_of(pipe), resolution, dtype)
        need = _need(sizes, config, own)
    except (UserError, RuntimeError) as error:  # advice, which does not stop a run
        logger.info("the memory of this run is not known: %s", error)
        return None
    if need.card <= free:
        return None
    said = f"this run needs about {need.card / GIB:.1f} GB on the card, and {free / GIB:.1f} GB are free: "
    for way in WAYS:
        with contextlib.suppress(UserError):  # an option that does not go with the others
            if way != own and (other := _need(sizes, config, way)).card <= free:
                return f"{said}with {way.flags} it needs {other.card / GIB:.1f} GB."
    return f"{said}no option makes it fit; choose a smaller resolution or another base (see `atomtune plan`)."


def _need(sizes: Sizes, config: CustomizeConfig, way: Way) -> Need:
    (need,) = needs(sizes, config.method, config, sizes.adapted(config, checkpointing=False), [way])
    return need
