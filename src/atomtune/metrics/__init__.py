"""Numbers for images: alignment with the prompt, fidelity to a subject, diversity, drift, and what pixels show
exactly."""

from atomtune.metrics.drift import Drift, div, drift, other_prompts, pres
from atomtune.metrics.judge import Judge, load_judge, vendi
from atomtune.metrics.models import Clip, Dino, ImageReward, load_clip, load_dino, load_image_reward
from atomtune.metrics.pixels import background_colour, place_and_size

__all__ = [
    "Clip",
    "Dino",
    "Drift",
    "ImageReward",
    "Judge",
    "background_colour",
    "div",
    "drift",
    "load_clip",
    "load_dino",
    "load_image_reward",
    "load_judge",
    "other_prompts",
    "place_and_size",
    "pres",
    "vendi",
]
