"""A first look: does moji customize? Six held-out things, one seed: `python -m experiments.moji.first_look`.

`methods` compares attention atoms in both orders, linear atoms on the value projection and LoRA on q, k, v and out, 300
steps each, everything else the shipped recipe. `dials` moves one option of that recipe at a time on two of the things.
One cell a run in results/; what is there for these weights of the base is not run again.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import atomtune
from atomtune import sampling
from experiments import subjects
from experiments.cells import cell, read

HERE = Path(__file__).parent / "results"
STEPS, NUM = 300, 4
METHODS: dict[str, dict[str, Any]] = {
    "atoms σ(AXW)": {},
    "atoms Aσ(XW)": {"mix_first": False},
    "linear atoms": {"target_modules": ("attn1.to_v",)},
    "LoRA r=16": {"method": "lora", "rank": 16},
}
DIALS: dict[str, dict[str, Any]] = {
    "recipe": {},
    "learning rate 1e-3": {"learning_rate": 1e-3},
    "learning rate 1e-2": {"learning_rate": 1e-2},
    "M = 64": {"num_atoms": 64},
    "M = 1024": {"num_atoms": 1024},
    "density 0.01": {"density": 0.01},
    "density 0.16": {"density": 0.16},
    "150 steps": {"steps": 150},
    "600 steps": {"steps": 600},
}
DIAL_SUBJECTS = ("octopus", "teapot")


def measure(name: str, options: dict[str, Any] | None, stripes: Path) -> dict[str, Any]:
    """Train one adapter, draw and score; without options, draw and score the base. Pictures go to `stripes`."""
    pipe = atomtune.load_base("moji")
    numbers: dict[str, Any] = {}
    if options is not None:
        run, summary = subjects.train(name, seed=0, **options)
        atomtune.load_adapter(pipe, run)
        wanted = ("seconds", "trainable_parameters", "loss", "active_per_token", "live_atoms")
        numbers = {key: summary[key] for key in wanted if key in summary}
    images = subjects.draw(pipe, name, NUM)
    stripe = np.concatenate([np.asarray(image) for image in images[::NUM]], axis=1)  # one of each prompt, side by side
    sampling.save_png(Image.fromarray(stripe), stripes)
    return subjects.score(images, name) | numbers


def jobs() -> dict[str, tuple[str, dict[str, Any] | None]]:
    """Every cell: its name, its subject and its options."""
    found: dict[str, tuple[str, dict[str, Any] | None]] = {}
    for name in subjects.SUBJECTS:
        found[f"methods-{name}-base"] = (name, None)
        for method, options in METHODS.items():
            found[f"methods-{name}-{method}"] = (name, {"steps": STEPS} | options)
    for name in DIAL_SUBJECTS:
        for dial, options in DIALS.items():
            found[f"dials-{name}-{dial}"] = (name, options)
    return found


def main(only: str) -> None:
    """Run what is missing."""
    stripes = subjects.CACHE / subjects.weights_digest() / "first-look"
    for key, (name, options) in jobs().items():
        if key.startswith(only):
            settings = {"base": subjects.weights_digest(), "subject": name, "options": options, "pictures": NUM}
            cell(HERE / f"{key}.json", settings, lambda: measure(name, options, stripes / f"{key}.png"))  # noqa: B023


def table() -> str:
    """Markdown: mean over the six things with the range, a row a method."""
    cells = read(HERE)
    lines = ["| | fidelity | alignment | background | diversity | trained | s |", "|---|--:|--:|--:|--:|--:|--:|"]
    for method in ("base", *METHODS):
        mine = [cells[f"methods-{name}-{method}"] for name in subjects.SUBJECTS]

        def column(key: str, form: str = ".2f", mine: list = mine) -> str:
            values = [one[key] for one in mine if key in one]
            if not values:
                return "–"
            return f"{sum(values) / len(values):{form}} ({min(values):{form}} to {max(values):{form}})"

        trained = f"{mine[0]['trainable_parameters']:,}" if "trainable_parameters" in mine[0] else "–"
        scores = [column(key) for key in ("fidelity", "alignment", "background", "diversity")]
        lines.append(f"| {method} | {' | '.join(scores)} | {trained} | {column('seconds', '.0f')} |")
    return "\n".join(lines)


def dials_table() -> str:
    """Markdown: fidelity and alignment of the things that have all of them, a row a setting."""
    cells = read(HERE)
    names = [name for name in DIAL_SUBJECTS if all(f"dials-{name}-{dial}" in cells for dial in DIALS)]
    heads = [f"{name}: {what}" for name in names for what in ("fidelity", "alignment", "alive")]
    lines = [f"| | {' | '.join(heads)} |", "|---|" + "--:|" * len(heads)]
    for dial in DIALS:
        row = []
        for name in names:
            one = cells[f"dials-{name}-{dial}"]
            row += [f"{one['fidelity']:.2f}", f"{one['alignment']:.2f}", f"{one['live_atoms']:,}"]
        lines.append(f"| {dial} | {' | '.join(row)} |")
    return "\n".join(lines)


def sheet() -> Image.Image:
    """One picture of each prompt (in columns) for the base and every method, two things side by side."""
    folder = subjects.CACHE / subjects.weights_digest() / "first-look"
    rows, labels = [], []
    for pair in zip(subjects.SUBJECTS[::2], subjects.SUBJECTS[1::2]):
        for method in ("base", *METHODS):
            row: list[Image.Image] = []
            for name in pair:
                with Image.open(folder / f"methods-{name}-{method}.png") as stripe:
                    parts = np.split(np.asarray(stripe), len(subjects.task(name).prompts), axis=1)
                row += [Image.fromarray(part) for part in parts]
            rows.append(row)
            labels.append(method.replace("Aσ(XW)", "(mixed last)").replace("σ(AXW)", "(mixed first)"))
    return sampling.grid(rows, labels)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="cells whose names start so: methods, dials, methods-teapot, ...")
    main(parser.parse_args().only)
