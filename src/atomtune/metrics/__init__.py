"""Numbers for images: alignment with the prompt, fidelity to a subject, diversity, and what pixels show exactly."""

from atomtune.metrics.drift import Drift, class_diversity, drift, other_prompts, preservation
from atomtune.metrics.judge import Judge, diversity, load_judge
from atomtune.metrics.pixels import background_colour, place_and_size

__all__ = [
    "Drift",
    "Judge",
    "background_colour",
    "class_diversity",
    "diversity",
    "drift",
    "load_judge",
    "other_prompts",
    "place_and_size",
    "preservation",
]
