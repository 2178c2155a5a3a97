"""A first look: does moji customize? Six held-out things, one seed: `python -m experiments --only moji_first_look`.

`methods` compares attention atoms in both orders, linear atoms on the value projection and LoRA on q, k, v and out, 300
steps each, everything else the recipe moji-paper. `dials` moves one option of it at a time on two of the things.
Parts of it run by themselves: `--cells 'methods-*'`, `'dials-teapot-*'`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import atomtune
from atomtune import sampling
from experiments.common import subjects
from experiments.common.cells import read

HERE = Path(__file__).parent
STEPS, NUM = 300, 4
METHODS: dict[str, tuple[str, dict[str, Any]]] = {  # in the name of a cell → title, options of training
    "atoms-mix-first": ("atoms σ(AXW)", {}),
    "atoms-mix-last": ("atoms Aσ(XW)", {"mix_first": False}),
    "linear-atoms": ("linear atoms", {"target_modules": ("attn1.to_v",)}),
    "lora-16": ("LoRA r=16", {"method": "lora", "rank": 16}),
}
DIALS: dict[str, tuple[str, dict[str, Any]]] = {
    "recipe": ("recipe", {}),
    "learning-rate-1e-3": ("learning rate 1e-3", {"learning_rate": 1e-3}),
    "learning-rate-1e-2": ("learning rate 1e-2", {"learning_rate": 1e-2}),
    "atoms-64": ("M = 64", {"num_atoms": 64}),
    "atoms-1024": ("M = 1024", {"num_atoms": 1024}),
    "density-0.01": ("density 0.01", {"density": 0.01}),
    "density-0.16": ("density 0.16", {"density": 0.16}),
    "150-steps": ("150 steps", {"steps": 150}),
    "600-steps": ("600 steps", {"steps": 600}),
}
DIAL_SUBJECTS = ("octopus", "teapot")


@dataclass(frozen=True)
class Config:
    """One cell."""

    key: str
    subject: str
    options: dict[str, Any] | None
    """Of training; none: the base."""

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "base": subjects.weights_digest(),
            "subject": self.subject,
            "options": self.options,
            "pictures": NUM,
        }

    @property
    def stripe(self) -> Path:
        """Where one picture of each prompt is kept, side by side."""
        return subjects.CACHE / subjects.weights_digest() / "first-look" / f"{self.key}.png"


def grid(quick: bool = False) -> dict[str, Config]:
    """There is no small slice: what learns for less does not learn."""
    cells = []
    for name in subjects.SUBJECTS:
        cells.append(Config(f"methods-{name}-base", name, None))
        for method, (_, options) in METHODS.items():
            cells.append(Config(f"methods-{name}-{method}", name, {"steps": STEPS} | options))
    for name in DIAL_SUBJECTS:
        cells += [Config(f"dials-{name}-{dial}", name, options) for dial, (_, options) in DIALS.items()]
    return {} if quick else {config.key: config for config in cells}


def measure(config: Config) -> dict[str, Any]:
    """Train one adapter, draw and score."""
    name, options = config.subject, config.options
    pipe = atomtune.load_base("moji")
    numbers: dict[str, Any] = {}
    if options is not None:
        run, summary = subjects.train(name, seed=0, **options)
        atomtune.load_adapter(pipe, run)
        wanted = ("seconds", "trainable_parameters", "loss", "active_per_token", "live_atoms")
        numbers = {key: summary[key] for key in wanted if key in summary}
    images = subjects.draw(pipe, name, NUM)
    stripe = np.concatenate([np.asarray(image) for image in images[::NUM]], axis=1)  # one of each prompt, side by side
    sampling.save_png(Image.fromarray(stripe), config.stripe)
    return subjects.score(images, name) | numbers


def results(out: Path = HERE) -> str:
    return f"{methods_table(out)}\n\n{dials_table(out)}"


def methods_table(out: Path) -> str:
    """Markdown: mean over the six things with the range, a row a method."""
    cells = read(out)
    lines = ["| | fidelity | alignment | background | diversity | trained | s |", "|---|--:|--:|--:|--:|--:|--:|"]
    for method, (title, _) in {"base": ("base", None), **METHODS}.items():
        mine = [cells[f"methods-{name}-{method}"] for name in subjects.SUBJECTS]

        def column(key: str, form: str = ".2f", mine: list = mine) -> str:
            values = [one[key] for one in mine if key in one]
            if not values:
                return "–"
            return f"{sum(values) / len(values):{form}} ({min(values):{form}} to {max(values):{form}})"

        trained = f"{mine[0]['trainable_parameters']:,}" if "trainable_parameters" in mine[0] else "–"
        scores = [column(key) for key in ("fidelity", "alignment", "background", "diversity")]
        lines.append(f"| {title} | {' | '.join(scores)} | {trained} | {column('seconds', '.0f')} |")
    return "\n".join(lines)


def dials_table(out: Path) -> str:
    """Markdown: fidelity and alignment of the things that have all of them, a row a setting."""
    cells = read(out)
    names = [name for name in DIAL_SUBJECTS if all(f"dials-{name}-{dial}" in cells for dial in DIALS)]
    heads = [f"{name}: {what}" for name in names for what in ("fidelity", "alignment", "alive")]
    lines = [f"| | {' | '.join(heads)} |", "|---|" + "--:|" * len(heads)]
    for dial, (title, _) in DIALS.items():
        row = []
        for name in names:
            one = cells[f"dials-{name}-{dial}"]
            row += [f"{one['fidelity']:.2f}", f"{one['alignment']:.2f}", f"{one['live_atoms']:,}"]
        lines.append(f"| {title} | {' | '.join(row)} |")
    return "\n".join(lines)
