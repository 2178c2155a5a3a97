"""A subject and a style, merged: `python -m experiments --only merge`

Two subjects moji has never seen (five Twemoji pictures each) × a style it has never seen (ten OpenMoji drawings of
things it knows). Each alone, both adapters added, concatenated, and two LoRAs added by PEFT, on the same prompts:

    an openmoji drawing of a sks teapot on a yellow background

The strip goes to docs/how-to/merge.png, the table into docs/how-to/merge.md.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from atomtune import bases, metrics, sampling
from atomtune.analysis.overlap import overlap
from atomtune.files import atomic_folder
from atomtune.moji.names import HELD_OUT_NAMES
from atomtune.moji.scenes import Scene
from atomtune.storage import folders
from experiments.common import openmoji, subjects
from experiments.common.cells import read
from experiments.common.report import table
from pretraining.drawings import Drawings

SUBJECTS = ("teapot", "octopus")
COLOURS = ("yellow", "pink", "green")
NUM = 4  # pictures of each prompt
HERE = Path(__file__).parent

Loader = Callable[[Any, str], None]
"""Puts the adapters of a column on a pipeline, for a subject."""


def prompts(name: str) -> list[str]:
    return [f"an {openmoji.STYLE} drawing of a {subjects.TOKEN} {name} on a {colour} background" for colour in COLOURS]


@cache
def subject(name: str, method: str) -> Path:
    return subjects.train(name, seed=0, **({"method": method} if method != "atoms" else {}))[0]


@cache
def style(method: str = "atoms", seed: int = 0) -> Path:
    return openmoji.train(seed=seed, **({"method": method} if method != "atoms" else {}))


def together(method: str, combination_type: str, weights: tuple[float, float] = (1, 1), seed: int = 0) -> Loader:
    """Both adapters, combined by PEFT's call."""

    def load(pipe: Any, name: str) -> None:
        folders.load_adapter(pipe, subject(name, method), "subject")
        model: Any = folders.load_adapter(pipe, style(method, seed), "style")
        model.add_weighted_adapter(["subject", "style"], list(weights), "both", combination_type=combination_type)
        model.set_adapter("both")

    return load


def nothing(_pipe: Any, _name: str) -> None:
    """The base alone."""


COLUMNS: dict[str, tuple[str, Loader]] = {  # file → heading, what draws
    "base": ("base", nothing),
    "subject": ("subject", lambda pipe, name: folders.load_adapter(pipe, subject(name, "atoms")) and None),
    "style": ("style", lambda pipe, _name: folders.load_adapter(pipe, style()) and None),
    "add": ("add", together("atoms", "linear")),
    "concatenate": ("concatenate", together("atoms", "cat")),
    "lora": ("two LoRAs added", together("lora", "cat")),
    # Not in the strip:
    "add-other-start": ("add, style trained from another start", together("atoms", "linear", seed=1)),
    "concatenate-0.7": ("concatenate, weights 0.7 and 0.7", together("atoms", "cat", (0.7, 0.7))),
    "lora-0.7": ("two LoRAs added, weights 0.7 and 0.7", together("lora", "cat", (0.7, 0.7))),
}
IN_STRIP = ("subject", "style", "add", "concatenate", "lora")


def draw(name: str, column: str) -> list[Image.Image]:
    """The column's pictures of a subject, `NUM` of each prompt; drawn once for the base's weights as they are."""
    folder = subjects.CACHE / subjects.weights_digest() / "merge" / f"{name}-{column}"
    if not folder.is_dir():
        pipe = bases.load_base(bases.MOJI)
        COLUMNS[column][1](pipe, name)
        drawings = sampling.generate(pipe, prompts(name), NUM, batch_size=12)
        with atomic_folder(folder) as temporary:
            sampling.save_images(drawings, temporary)
    return [Image.open(file).convert("RGB") for file in sorted(folder.glob("*.png"))]


def real(name: str, drawn: str) -> list[Image.Image]:
    """The subject's own drawing (Twemoji's), or OpenMoji's of the same name, on the backgrounds of the prompts."""
    if drawn == openmoji.STYLE:
        return [openmoji.picture(name, colour) for colour in COLOURS]
    return [Drawings().picture(Scene(name, subjects.STYLE, colour)) for colour in COLOURS]


def score(name: str, images: list[Image.Image]) -> dict[str, float]:
    """What the judge and the pixels say, as means over the pictures of all prompts."""
    judge, each = metrics.load_judge(), len(images) // len(COLOURS)
    asked = [colour for colour in COLOURS for _ in range(each)]
    return {
        "subject": float(judge.fidelity(images, real(name, subjects.STYLE)).mean()),
        "openmoji": float(judge.fidelity(images, real(name, openmoji.STYLE)).mean()),
        "outline": float(np.mean([openmoji.outline(image) for image in images])),
        "alignment": float(judge.alignment(images, [f"a {name} on a {c} background" for c in asked]).mean()),
        "background": float(np.mean([metrics.background_colour(i) == c for i, c in zip(images, asked)])),
    }


def measure_overlap(name: str) -> dict[str, Any]:
    """`atomtune merge --report` on the two adapters, in a few numbers: means over the layers."""
    pipe = bases.load_base(bases.MOJI)
    folders.load_adapter(pipe, subject(name, "atoms"), "subject")
    folders.load_adapter(pipe, style(), "style")
    own = [f"a {subjects.TOKEN} {name} on a {colour} background" for colour in COLOURS]
    drawn = [f"an {openmoji.STYLE} drawing of a {thing} on a white background" for thing in ("cat", "banana", "house")]
    found = overlap(pipe, (own, drawn), ("subject", "style"))

    def mean(what: str) -> Any:
        return np.mean([getattr(layer, what) for layer in found.layers], axis=0).tolist()

    means = {what: mean(what) for what in ("span_overlap", "chance", "both", "independent", "cosine")}
    return {"alive": found.alive, "alive_in_both": found.alive_in_both, "strength": found.strength} | means


@dataclass(frozen=True)
class Config:
    """One cell: what is measured, and what it depends on."""

    compute: Callable[[], dict[str, Any]]
    settings: dict[str, Any] = field(default_factory=dict)


def grid(quick: bool = False) -> dict[str, Config]:
    """There is no small slice: the style alone takes minutes to learn."""
    if quick:
        return {}
    cells = {"outline": Config(openmoji.outlines_of_real_drawings, {"openmoji": openmoji.VERSION})}
    for name in SUBJECTS:
        for drawn in (subjects.STYLE, openmoji.STYLE):
            settings = {"openmoji": openmoji.VERSION, "colours": COLOURS}
            cells[f"{name}-real-{drawn}"] = Config(partial(_score_real, name, drawn), settings)
        settings = {"base": subjects.weights_digest(), "prompts": prompts(name), "pictures": NUM}
        for column in COLUMNS:
            cells[f"{name}-{column}"] = Config(partial(_score_drawn, name, column), settings)
        cells[f"{name}-overlap"] = Config(partial(measure_overlap, name), settings)
    return cells


def measure(config: Config) -> dict[str, Any]:
    return config.compute()


def _score_real(name: str, drawn: str) -> dict[str, float]:
    return score(name, real(name, drawn))


def _score_drawn(name: str, column: str) -> dict[str, float]:
    return score(name, draw(name, column))


HEADS = {
    "subject": "subject",
    "outline": "black outline",
    "openmoji": "OpenMoji's own drawing",
    "alignment": "alignment",
    "background": "background",
}


def results(out: Path = HERE) -> str:
    """The tables of docs/how-to/merge.md."""
    found = read(out)
    rows = {"the subject's own drawing": f"real-{subjects.STYLE}", "OpenMoji's own drawing": f"real-{openmoji.STYLE}"}
    rows |= {heading: column for column, (heading, _) in COLUMNS.items()}
    parts = []
    for name in SUBJECTS:
        body = [[label, *(f"{found[f'{name}-{c}'][key]:.2f}" for key in HEADS)] for label, c in rows.items()]
        parts.append(table((f"**{name}**", *HEADS.values()), body))
    o = found["outline"]
    others = [value for style_name, value in o.items() if style_name not in ("auc", openmoji.STYLE)]
    parts.append(
        f"Real drawings of the {len(HELD_OUT_NAMES)} names moji does not know have an outline of "
        f"{o[openmoji.STYLE]:.2f} as OpenMoji draws them and {min(others):.2f} to {max(others):.2f} in moji's five "
        f"styles (AUC {o['auc']:.2f})."
    )
    for name in SUBJECTS:
        v = found[f"{name}-overlap"]
        parts.append(
            f"Overlap of the {name} with the style, before merging: span overlap {v['span_overlap']:.2f} (random spans "
            f"{v['chance']:.2f}); both act at {v['both'][0]:.0%} of the tokens on the subject's prompts and "
            f"{v['both'][1]:.0%} on the style's ({v['independent'][0]:.0%} and {v['independent'][1]:.0%} if they were "
            f"independent); on the other's prompts the subject acts with {v['strength'][0]:.0%} of its own strength, "
            f"the style with {v['strength'][1]:.0%}; cosine of what they add {v['cosine'][0]:+.2f} and "
            f"{v['cosine'][1]:+.2f}."
        )
    return "\n\n".join(parts)
