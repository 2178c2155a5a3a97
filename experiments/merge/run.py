"""A subject and a style, merged (the paper's Fig. 10): `python -m experiments --only merge`

Six subjects moji has never seen (five Twemoji pictures each) × two styles it has never seen (ten drawings of things it
knows, by OpenMoji and by Streamline). Each alone, both adapters added, concatenated, and two LoRAs added by PEFT, on
the same prompts:

    an openmoji drawing of a sks teapot on a yellow background

The strip goes to docs/how-to/merge.png, the tables into docs/how-to/merge.md.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from atomtune import metrics, sampling
from atomtune.analysis.overlap import overlap
from atomtune.files import atomic_folder
from atomtune.moji.names import spoken
from atomtune.moji.scenes import Scene, with_article
from atomtune.storage import folders
from experiments.common import subjects
from experiments.common.cells import read
from experiments.common.intervals import paired, shown
from experiments.common.report import Claim, table
from experiments.common.styles import OPENMOJI, STYLES, Style, outline
from pretraining.drawings import Drawings

SUBJECTS = ("octopus", "turtle", "helicopter", "crown", "mushroom", "tractor")  # both sets draw them
EXAMPLES = ("teapot", "octopus")  # with OpenMoji's style on the how-to page, in more ways
COLOURS = ("yellow", "pink", "green", "white", "blue", "red")
NUM = 4  # pictures of each prompt
HERE = Path(__file__).parent

Loader = Callable[[Any, str, Style], None]
"""Puts the adapters of a column on a pipeline, for a subject and a style."""


def colours(name: str) -> list[str]:
    """Three backgrounds that share no colour with the subject."""
    return [colour for colour in COLOURS if colour not in subjects.SHARED_COLOURS[name]][:3]


def prompts(name: str, style: Style) -> list[str]:
    drawn = f"{with_article(style.word)} drawing of a {subjects.TOKEN} {name}"
    return [f"{drawn} on a {colour} background" for colour in colours(name)]


@cache
def subject(name: str, method: str = "atoms") -> Path:
    return subjects.train(name, seed=0, **({"method": method} if method != "atoms" else {}))[0]


@cache
def style_run(style: str, method: str = "atoms", seed: int = 0) -> Path:
    return STYLES[style].train(seed=seed, **({"method": method} if method != "atoms" else {}))


def together(method: str, combination_type: str, weights: tuple[float, float] = (1, 1), seed: int = 0) -> Loader:
    """Both adapters, combined by PEFT's call."""

    def load(pipe: Any, name: str, style: Style) -> None:
        folders.load_adapter(pipe, subject(name, method), "subject")
        model: Any = folders.load_adapter(pipe, style_run(style.word, method, seed), "style")
        model.add_weighted_adapter(["subject", "style"], list(weights), "both", combination_type=combination_type)
        model.set_adapter("both")

    return load


def nothing(_pipe: Any, _name: str, _style: Style) -> None:
    """The base alone."""


COLUMNS: dict[str, tuple[str, Loader]] = {  # file → heading, what draws
    "base": ("base", nothing),
    "subject": ("subject", lambda pipe, name, _style: folders.load_adapter(pipe, subject(name)) and None),
    "style": ("style", lambda pipe, _name, style: folders.load_adapter(pipe, style_run(style.word)) and None),
    "add": ("add", together("atoms", "linear")),
    "concatenate": ("concatenate", together("atoms", "cat")),
    "lora": ("two LoRAs added", together("lora", "cat")),
}
MORE: dict[str, tuple[str, Loader]] = {  # of the examples alone, and not in the strip
    "add-other-start": ("add, style trained from another start", together("atoms", "linear", seed=1)),
    "concatenate-0.7": ("concatenate, weights 0.7 and 0.7", together("atoms", "cat", (0.7, 0.7))),
    "lora-0.7": ("two LoRAs added, weights 0.7 and 0.7", together("lora", "cat", (0.7, 0.7))),
}
IN_STRIP = ("subject", "style", "add", "concatenate", "lora")


def draw(name: str, style: Style, column: str) -> list[Image.Image]:
    """The column's pictures of a subject, `NUM` of each prompt; drawn once for the base's weights as they are."""
    folder = subjects.CACHE / subjects.weights_digest() / "merge" / f"{name}-{style.word}-{column}"
    if not folder.is_dir():
        pipe = subjects.moji()
        (COLUMNS | MORE)[column][1](pipe, name, style)
        drawings = sampling.generate(pipe, prompts(name, style), NUM, batch_size=12)
        with atomic_folder(folder) as temporary:
            sampling.save_images(drawings, temporary)
    return [Image.open(file).convert("RGB") for file in sorted(folder.glob("*.png"))]


def real(name: str, style: Style | None) -> list[Image.Image]:
    """The subject's own drawing (Twemoji's, for None), or the style's, on the backgrounds of the prompts."""
    if style is not None:
        return [style.picture(name, colour) for colour in colours(name)]
    return [Drawings().picture(Scene(name, subjects.STYLE, colour)) for colour in colours(name)]


def score(name: str, style: Style, images: list[Image.Image]) -> dict[str, float]:
    """What the judge and the pixels say, as means over the pictures of all prompts."""
    judge, each = metrics.load_judge(), len(images) // len(colours(name))
    asked = [colour for colour in colours(name) for _ in range(each)]
    return {
        "subject": float(judge.fidelity(images, real(name, None)).mean()),
        "style": float(judge.fidelity(images, real(name, style)).mean()),
        "outline": float(np.mean([outline(image) for image in images])),
        "alignment": float(judge.alignment(images, [f"a {name} on a {c} background" for c in asked]).mean()),
        "background": float(np.mean([metrics.background_colour(i) == c for i, c in zip(images, asked)])),
    }


def measure_overlap(name: str, style: Style) -> dict[str, Any]:
    """`atomtune merge --report` on the two adapters, in a few numbers: means over the layers."""
    pipe = subjects.moji()
    folders.load_adapter(pipe, subject(name), "subject")
    folders.load_adapter(pipe, style_run(style.word), "style")
    own = [f"a {subjects.TOKEN} {name} on a {colour} background" for colour in colours(name)]
    things = [spoken([*style.learnt][place]) for place in (0, 3, 7)]
    drawn = [f"{with_article(style.word)} drawing of a {thing} on a white background" for thing in things]
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
    """There is no small slice: a style alone takes minutes to learn."""
    if quick:
        return {}
    cells = {f"{style.word}-told": Config(style.told_apart, {"version": style.version}) for style in STYLES.values()}
    for style in STYLES.values():
        for name in dict.fromkeys([*SUBJECTS, *(EXAMPLES if style is OPENMOJI else ())]):
            pair, settings = f"{name}-{style.word}", {"version": style.version, "colours": colours(name)}
            cells[f"{pair}-real-subject"] = Config(partial(_score_real, name, style, None), settings)
            cells[f"{pair}-real-style"] = Config(partial(_score_real, name, style, style), settings)
            settings = {"base": subjects.weights_digest(), "prompts": prompts(name, style), "pictures": NUM}
            for column in COLUMNS | (MORE if style is OPENMOJI and name in EXAMPLES else {}):
                cells[f"{pair}-{column}"] = Config(partial(_score_drawn, name, style, column), settings)
            cells[f"{pair}-overlap"] = Config(partial(measure_overlap, name, style), settings)
    return cells


def measure(config: Config) -> dict[str, Any]:
    return config.compute()


def _score_real(name: str, style: Style, drawn: Style | None) -> dict[str, float]:
    return score(name, style, real(name, drawn))


def _score_drawn(name: str, style: Style, column: str) -> dict[str, float]:
    return score(name, style, draw(name, style, column))


def results(out: Path = HERE) -> str:
    """The tables of docs/how-to/merge.md: figure 10, then the examples one by one."""
    found = read(out)
    parts = [figure_10(found, style) for style in STYLES.values()]
    parts += [example(found, name) for name in EXAMPLES]
    parts += [told(found[f"{style.word}-told"], style) for style in STYLES.values() if f"{style.word}-told" in found]
    return "\n\n".join(filter(None, parts))


def numbers(found: dict[str, Any], style: Style, column: str, key: str) -> list[float]:
    """Of each of the six subjects; empty before all of them are there."""
    cells = [found.get(f"{name}-{style.word}-{column}") for name in SUBJECTS]
    return [cell[key] for cell in cells if cell] if all(cells) else []


def figure_10(found: dict[str, Any], style: Style) -> str:
    """Mean and interval over the six subjects; empty before all of them are there."""
    rows = {"the subject's own drawing": "real-subject", "the style's own drawing": "real-style"}
    rows |= {heading: column for column, (heading, _) in COLUMNS.items()}
    keys = {"subject": "subject", "style": f"{style.title}'s own drawing", "alignment": "alignment"}
    if style is OPENMOJI:  # of the other a rim says little: see `told`
        keys["outline"] = "black outline"
    body = [[label, *(numbers(found, style, column, key) for key in keys)] for label, column in rows.items()]
    if not all(own for _, *row in body for own in row) or not (both := shared_tokens(found, style)):
        return ""
    lines = [[label, *(shown(own, 2) for own in row)] for label, *row in body]
    return (
        f"{table((f'**{style.title}**', *keys.values()), lines)}\n\n{len(SUBJECTS)} subjects. Both adapters act at "
        f"{shown(both[0], 2)} of the tokens on the subject's prompts; {shown(both[1], 2)} if they were independent."
    )


def shared_tokens(found: dict[str, Any], style: Style) -> tuple[list[float], list[float]] | None:
    """The shares of the tokens on the subject's prompts at which both adapters act, and by chance, of each subject."""
    both, chance = (numbers(found, style, "overlap", key) for key in ("both", "independent"))
    return ([own[0] for own in both], [own[0] for own in chance]) if both else None  # pyright: ignore[reportIndexIssue]


def example(found: dict[str, Any], name: str) -> str:
    """One subject with OpenMoji's style, in every way, and the overlap of its atoms; empty before all is there."""
    rows = {"the subject's own drawing": "real-subject", "OpenMoji's own drawing": "real-style"}
    rows |= {heading: column for column, (heading, _) in (COLUMNS | MORE).items()}
    wanted = {column: f"{name}-{OPENMOJI.word}-{column}" for column in (*rows.values(), "overlap")}
    if not found.keys() >= {*wanted.values()}:
        return ""
    cells = {column: found[cell] for column, cell in wanted.items()}
    heads = {
        "subject": "subject",
        "outline": "black outline",
        "style": "OpenMoji's own drawing",
        "alignment": "alignment",
        "background": "background",
    }
    body = [[label, *(f"{cells[column][key]:.2f}" for key in heads)] for label, column in rows.items()]
    v = cells["overlap"]
    return (
        table((f"**{name}**", *heads.values()), body)
        + f"\n\nOverlap of the {name} with the style, before merging: span overlap {v['span_overlap']:.2f} (random "
        f"spans {v['chance']:.2f}); both act at {v['both'][0]:.0%} of the tokens on the subject's prompts and "
        f"{v['both'][1]:.0%} on the style's ({v['independent'][0]:.0%} and {v['independent'][1]:.0%} if they were "
        f"independent); on the other's prompts the subject acts with {v['strength'][0]:.0%} of its own strength, "
        f"the style with {v['strength'][1]:.0%}; cosine of what they add {v['cosine'][0]:+.2f} and "
        f"{v['cosine'][1]:+.2f}."
    )


def told(cell: dict[str, Any], style: Style) -> str:
    """How far the two measures of a style can be trusted."""
    said = []
    for key, title in (("likeness", f"a fidelity to {style.title}'s own drawing"), ("outline", "an outline")):
        values = dict(cell[key])
        area, own = values.pop("auc"), values.pop(style.word)
        said.append(
            f"{title} of {own:.2f} as {style.title} draws them and {min(values.values()):.2f} to "
            f"{max(values.values()):.2f} in moji's five styles (AUC {area:.2f})"
        )
    return (
        f"Real drawings of the {cell['names']} names that moji does not know and {style.title} draws have "
        f"{', '.join(said)}."
    )


def claims(out: Path = HERE) -> list[Claim]:
    """None before all pairs are there. A number is of a subject, the mean over the styles."""
    found = read(out)

    def of(column: str, key: str) -> np.ndarray:
        return np.mean([numbers(found, style, column, key) for style in STYLES.values()], axis=0)

    if found.keys() < grid().keys():
        return []
    subject, style = ({column: of(column, key) for column in COLUMNS} for key in ("subject", "style"))
    shared = [shared_tokens(found, style) for style in STYLES.values()]
    both, chance = np.mean([own for own in shared if own], axis=0)
    merged, kept = style["concatenate"], subject["concatenate"]
    rules = {
        "Concatenated, the style is taken on: more of it than with the subject alone": merged - style["subject"],
        "Concatenated, the subject is kept: more of it than with the style alone": kept - subject["style"],
        "Concatenating keeps more of the subject than adding two LoRAs": kept - subject["lora"],
        "Concatenating keeps more of the style than adding two LoRAs": merged - style["lora"],
        "Concatenating keeps more of the subject than adding entry by entry": kept - subject["add"],
        "Concatenating keeps more of the style than adding entry by entry": merged - style["add"],
    }
    made = [paired(title, own.tolist()) for title, own in rules.items()]
    return [*made, paired("Both act at fewer tokens than chance would have it", (both - chance).tolist(), -1)]
