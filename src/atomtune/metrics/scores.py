"""Several metrics at once, by name: what `atomtune compare`, `edit` and `demo` print, one row for each number."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from atomtune.errors import UserError
from atomtune.metrics import models
from atomtune.metrics.drift import Features, div, drift, pres
from atomtune.metrics.judge import load_judge, vendi
from atomtune.metrics.pixels import background_colour
from atomtune.moji.scenes import BACKGROUNDS

if TYPE_CHECKING:
    import torch
    from PIL import Image

METRICS = ("judge", "clip", "dino", "image_reward", "vendi", "drift", "pres", "div")
ROWS = {  # key in the files: what is printed, and how
    "train_seconds": ("training time, s", ".0f"),
    "parameters": ("trained parameters", ",d"),
    "megabytes": ("adapter on disk, MB", ".2f"),
    "atoms": ("atoms, all layers", ",d"),
    "alive": ("atoms alive", ",d"),
    "used_per_token": ("atoms used per token and layer", ".1f"),
    "fidelity": ("fidelity to the images", ".3f"),
    "alignment": ("alignment with the prompt", ".3f"),
    "background": ("share with the background asked for", ".2f"),
    "clip_i": ("CLIP-I: fidelity to the images", ".3f"),
    "clip_t": ("CLIP-T: alignment with the prompt", ".3f"),
    "dino": ("DINO: fidelity to the images", ".3f"),
    "image_reward": ("ImageReward", ".3f"),
    "vendi": ("Vendi: diversity of the images of a prompt", ".2f"),
    "pixels": ("drift: how much other prompts change", ".3f"),
    "features": ("drift of their features", ".3f"),
    "unchanged": ("share of them that do not change", ".2f"),
    "pres": ("PRES: likeness of the class to the images", ".3f"),
    "div": ("DIV: diversity of the class", ".3f"),
}
NAMES = {  # of a model's scores, in `ROWS`
    ("judge", "fidelity"): "fidelity",
    ("judge", "alignment"): "alignment",
    ("clip", "fidelity"): "clip_i",
    ("clip", "alignment"): "clip_t",
    ("dino", "fidelity"): "dino",
    ("image_reward", "alignment"): "image_reward",
}


def load_models(
    names: Sequence[str], clip: str = models.CLIP, dino: str = models.DINO, device: str | torch.device = "cpu"
) -> dict[str, Any]:
    """The models of the metrics in `names`, by name. Raises `UserError` for an unknown name, for a model that cannot be
    loaded, and for a metric of features without a model that has them."""
    if unknown := [name for name in names if name not in METRICS]:
        raise UserError(f"there is no metric {unknown[0]!r}: choose of {', '.join(METRICS)}.")
    loaders = {
        "judge": load_judge,
        "clip": lambda: models.load_clip(clip, device),
        "dino": lambda: models.load_dino(dino, device),
        "image_reward": lambda: models.load_image_reward(device=device),
    }
    if not {"judge", "clip", "dino"} & {*names} and (lacking := {"vendi", "pres", "div"} & {*names}):
        raise UserError(f"{min(lacking)} compares features of images: name clip or dino too.")
    return {name: load() for name, load in loaders.items() if name in names}


def features_of(loaded: Mapping[str, Any]) -> Features | None:
    """The features that `vendi`, `drift`, `pres` and `div` compare: DINO's, else CLIP's, else the judge's."""
    return next((loaded[name].features for name in ("dino", "clip", "judge") if name in loaded), None)


def scores(
    loaded: Mapping[str, Any],
    names: Sequence[str],
    images: Sequence[Image.Image],
    prompts: Sequence[str],
    num: int,
    references: Sequence[Image.Image],
) -> dict[str, float]:
    """Means over the images, `num` of each prompt; prompts are without tokens, which no model knows. Without
    `references` there is no fidelity."""
    found, texts = {}, [prompt for prompt in prompts for _ in range(num)]
    for (model, score), name in NAMES.items():
        against = texts if score == "alignment" else references
        if model in loaded and len(against):
            found[name] = float(getattr(loaded[model], score)(images, against).mean())
    asked = [next((word for word in BACKGROUNDS if f"{word} background" in text), None) for text in texts]
    if "judge" in loaded and None not in asked:
        found["background"] = float(np.mean([background_colour(i) == colour for i, colour in zip(images, asked)]))
    if "vendi" in names and (features := features_of(loaded)):
        groups = [images[first : first + num] for first in range(0, len(images), num)]
        found["vendi"] = float(np.mean([vendi(features(group)) for group in groups]))
    return found


def changes(
    loaded: Mapping[str, Any],
    names: Sequence[str],
    before: Mapping[str, Sequence[Image.Image]],
    after: Mapping[str, Sequence[Image.Image]],
    references: Sequence[Image.Image],
) -> dict[str, float]:
    """What an adapter does to other prompts (`drift`), and to its class without the token (`pres`, `div`). Images of
    the base and of the adapter, by the names of `other_prompts`; without those of the class if it is not known."""
    features, found = features_of(loaded), {}
    if "drift" in names:
        one, other = ([image for key in ("unrelated", "neighbours") for image in of[key]] for of in (before, after))
        found |= {key: value for key, value in asdict(drift(one, other, features)).items() if value is not None}
    if features and "class" in after and "pres" in names and references:
        found["pres"] = pres(after["class"], references, features)
    if features and "class" in after and "div" in names:
        found["div"] = div(after["class"], features)
    return found


def rounded(numbers: Mapping[str, Any]) -> dict[str, Any]:
    """As they are printed, in the order of `ROWS`, so that a table and its file hold the same numbers."""
    return {key: json.loads(f"{numbers[key]:{form.strip(',')}}") for key, (_, form) in ROWS.items() if key in numbers}


def table(columns: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, list[str]]]:
    """The rows that are printed: a label, and a value for each column."""
    for key, (label, form) in ROWS.items():
        if any(key in column for column in columns.values()):
            yield label, [f"{column[key]:{form}}" if key in column else "–" for column in columns.values()]
