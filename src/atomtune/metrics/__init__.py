"""Numbers for images: alignment with the prompt, fidelity to a subject, diversity, and what pixels show exactly."""

from atomtune.metrics.judge import Judge, diversity, load_judge
from atomtune.metrics.pixels import background_colour, place_and_size

__all__ = ["Judge", "background_colour", "diversity", "load_judge", "place_and_size"]
