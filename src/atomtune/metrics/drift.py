"""What an adapter does to prompts that have nothing to do with its subject: drift, and DreamBooth's PRES and DIV."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image

from atomtune.errors import UserError
from atomtune.metrics.judge import embed_sentences
from atomtune.moji.scenes import BACKGROUNDS, with_article
from atomtune.prompts import MEASURED, background

Features = Callable[[Sequence[Image.Image]], np.ndarray]
"""Images → [images, width], one vector for each: `load_judge().features`, DINO's, CLIP's."""


@dataclass(frozen=True)
class Drift:
    """How far images moved when an adapter was switched on: means over pairs of the same prompt and noise."""

    features: float | None
    """(1 - mean cosine of the features) / 2, from 0 (nothing moved) to 1; 0.5: nothing in common. PEFT's image
    benchmark calls this drift. None if no features were asked for."""
    pixels: float
    """Root mean square of the pixels' differences, of values from 0 to 1."""
    unchanged: float
    """Share of the images, 0 to 1, that are the base's own to the bit."""


def drift(before: Sequence[Image.Image], after: Sequence[Image.Image], features: Features | None) -> Drift:
    """Compare the base's images with the adapter's, pair by pair: the same prompts, the same noise.

    Raises `UserError` if there is no image, if two of a pair differ in size, or if the features have no direction.
    """
    if not before or len(before) != len(after):
        raise UserError(f"drift compares images in pairs, got {len(before)} without the adapter and {len(after)} with.")
    pixels = []
    for one, other in zip(before, after):
        if one.size != other.size:
            raise UserError(f"drift compares images of one size, got {one.size} and {other.size}.")
        pixels.append((_values(other) - _values(one)) / 255)
    cosines = (_directions(before, features) * _directions(after, features)).sum(1) if features else None
    return Drift(
        features=None if cosines is None else float((1 - cosines.mean()) / 2),
        pixels=float(np.mean([np.sqrt((difference**2).mean()) for difference in pixels])),
        unchanged=float(np.mean([not difference.any() for difference in pixels])),
    )


def pres(class_images: Sequence[Image.Image], subject: Sequence[Image.Image], features: Features) -> float:
    """DreamBooth's PRES, in [-1, 1]: the mean cosine between images of the class, drawn without the token, and images
    of the subject. The higher, the more of the class has become the subject. Raises `UserError` if there are none of
    either."""
    if not class_images or not subject:
        raise UserError(
            f"PRES compares images of the class with images of the subject, got {len(class_images)} and {len(subject)}."
        )
    return float((_directions(class_images, features) @ _directions(subject, features).T).mean())


def div(class_images: Sequence[Image.Image], features: Features) -> float:
    """DreamBooth's DIV, in [0, 2]: the mean distance between two images of the class, drawn without the token. The
    distance is 1 - cosine of the features here (DreamBooth takes LPIPS). Raises `UserError` for fewer than two."""
    if len(class_images) < 2:
        raise UserError(f"diversity is between images: expected two or more, got {len(class_images)}.")
    unit = _directions(class_images, features)
    first, second = np.triu_indices(len(unit), 1)
    return float((1 - (unit[first] * unit[second]).sum(1)).mean())


def other_prompts(class_name: str | Sequence[str], unrelated: int = 40, neighbours: int = 10) -> dict[str, list[str]]:
    """Three fixed sets of prompts on which an adapter of a subject should change little, or nothing.

    unrelated    everyday things that have little to do with the class, spread evenly over how little
    neighbours   the things most like the class
    class        the class itself, without the token

    Of an adapter of several subjects, `class_name` has all their classes, which then take turns. Without any, as for an
    adapter that does not say what it shows, nothing is near, and the last two sets are empty.

    Things are names that moji knows, which are everyday words for any base, and none of those that `--preserve` trains
    on. Backgrounds take turns. Raises `UserError` if more are asked for than there are: half of the things are near,
    and half are far.
    """
    classes = [class_name] if isinstance(class_name, str) else list(class_name)
    if not all(name.strip() for name in classes):
        raise UserError("the class must be a word or two, such as 'teapot', got an empty one.")
    nearest = most_like_first(classes, MEASURED)
    middle = len(nearest) // 2
    far = nearest[middle:]
    for name, wanted in (("unrelated", unrelated), ("neighbours", neighbours)):
        if not 0 <= wanted <= middle:
            raise UserError(f"{name} must be from 0 to {middle}, got {wanted}.")
    chosen = [far[round(place)] for place in np.linspace(0, len(far) - 1, unrelated)]
    return {
        "unrelated": _on_backgrounds(chosen),
        "neighbours": _on_backgrounds(nearest[:neighbours] if classes else []),
        "class": _on_backgrounds([name for name, _ in zip(cycle(classes), BACKGROUNDS)]),
    }


def most_like_first(classes: Sequence[str], names: Sequence[str]) -> list[str]:
    """Those of `names` that are none of the classes, in capitals or not, by how like one of the classes they are (the
    largest cosine of MiniLM's sentence embeddings)."""
    known = {" ".join(each.lower().split()) for each in classes}
    names = [name for name in names if name.lower() not in known]
    if not classes:
        return names
    embedded = embed_sentences(names)
    alike = torch.stack([embedded @ embed_sentences([each])[0] for each in classes]).amax(0)
    return [names[place] for place in alike.argsort(descending=True).tolist()]


def _on_backgrounds(names: Sequence[str]) -> list[str]:
    colours = [*BACKGROUNDS]
    return [
        f"{with_article(name)} on {background(colours[number % len(colours)])}" for number, name in enumerate(names)
    ]


def _values(image: Image.Image) -> Float[np.ndarray, "height width 3"]:
    return np.asarray(image.convert("RGB"), dtype=float)


def _directions(images: Sequence[Image.Image], features: Features) -> Float[np.ndarray, "images width"]:
    """The features of the images, scaled to length 1. Raises `UserError` if they have no direction."""
    found = np.asarray(features(images), dtype=float)
    if found.ndim != 2 or len(found) != len(images):
        raise UserError(
            f"features must return one vector for each image, [{len(images)}, width], got the shape {[*found.shape]}."
        )
    lengths = np.linalg.norm(found, axis=1, keepdims=True)
    if not (np.isfinite(lengths) & (lengths > 0)).all():
        raise UserError("features must return vectors that are finite and not all zeros, which have no direction.")
    return found / lengths
