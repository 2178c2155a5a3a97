"""Table 1: methods side by side, on subjects that the base has never seen: `python -m experiments --only customization`

Thirty subjects of moji. Three of them, on which the recipe was found, choose each method's learning rate; the others
are scored: cells `SUBJECT-METHOD-KIND`. The same code at the paper's scale, on any base with DreamBooth's folders:

    python -m experiments.customization.run --base PixArt-alpha/PixArt-Sigma-XL-2-1024-MS --subjects DREAMBOOTH_DIR \
        --metrics clip,dino,vendi,drift
"""

import argparse
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import atomtune
from atomtune import metrics, sampling
from atomtune.bases import MOJI
from atomtune.metrics.models import CLIP, DINO
from atomtune.metrics.scores import changes, load_models, scores
from atomtune.prompts import without_tokens
from experiments.common import subjects
from experiments.common.cells import read, run_cells
from experiments.common.intervals import paired, shown, trend
from experiments.common.report import Claim, table
from experiments.customization import tasks
from experiments.customization.tasks import STYLE, TOKEN, Task

HERE = Path(__file__).parent
STRIPS = HERE / "images"
NUM, STEPS = 5, 20  # images of each prompt, and steps of drawing them; after ten atoms are blurred more than LoRA
TUNED = ("octopus", "teapot", "flamingo")  # the recipe was found on them
SCORED = [name for name in tasks.MOJI if name not in TUNED]
RATES = (2e-3, 4e-3, 8e-3)
TUNING = {"every": 3, "num": 2}  # prompts, and images of each, by which a rate is chosen
OTHERS = (10, 5)  # unrelated prompts and neighbours of the class, beside ten of the class itself
METRICS = ("judge", "vendi", "drift", "pres", "div")
BOTH, VALUES = ("attn1", "attn2"), ("attn1.to_v", "attn2.to_v")
METHODS: dict[str, tuple[str, dict[str, Any]]] = {  # name in the cells: heading, options of `customize`
    "lora": ("LoRA, r = 16", {"method": "lora", "rank": 16, "target_modules": BOTH}),
    "dora": ("DoRA, r = 16", {"method": "dora", "rank": 16, "target_modules": BOTH}),
    "oft": ("OFT, r = 4", {"method": "oft", "rank": 4, "target_modules": BOTH}),
    "atoms": ("atoms, ρ = .04", {"target_modules": VALUES}),
    "atoms.02": ("atoms, ρ = .02", {"target_modules": VALUES, "density": 0.02}),
    "few": ("atoms, LoRA's parameters, ρ = .04", {"target_modules": VALUES, "num_atoms": 64}),
    "few.02": ("atoms, LoRA's parameters, ρ = .02", {"target_modules": VALUES, "num_atoms": 64, "density": 0.02}),
    "after": ("σ(A X W_s)", {"target_modules": BOTH, "mix_first": True}),
    "before": ("A σ(X W_s)", {"target_modules": BOTH, "mix_first": False}),
}
RATE_OF = {"atoms.02": "atoms", "few.02": "few"}
"""Methods that take the rate of another, from which density alone tells them."""
GRID = ("base", "lora", "dora", "oft", "atoms")  # the methods in figures 11 to 16, without `--preserve`
SHOWN = SCORED[::2][:12]  # the subjects in them
SHEETS = ("grid-1.png", "grid-2.png", "grid-3.png")  # their files, of four subjects each
PICTURED = (0, 5, 6, 14)  # which of the 25 prompts: a caption, two other backgrounds, another size and place; of each
# the image of the first seed, after the first image of the five
SIZES = {16: "m16", 256: "atoms", 1024: "m1024", 2048: "m2048"}
"""Table 2: atoms a layer → cells, at ρ = .04 and the rate of 256."""
SIZED = SCORED[:9]
OFF: dict[str, Any] = {"preserve": False, "floor": 0.0, "steps": 200, "lr_scheduler": "cosine"}
KINDS = {"plain": "", "preserve": "--preserve"}


@dataclass(frozen=True)
class Config:
    """One cell: a subject, and the options of `customize` (None: the base alone)."""

    name: str
    options: dict[str, Any] | None = None
    tuning: bool = False
    """Few images, and no other prompts: to choose a learning rate."""
    strip: str | None = None
    """The file for its row of figures 11 to 16."""

    @property
    def settings(self) -> dict[str, Any]:
        drawn: dict[str, Any] = TUNING if self.tuning else {"num": NUM, "others": OTHERS}
        own = {"name": self.name, "options": self.options, "steps": STEPS, "strip": self.strip}
        return {"base": subjects.weights_digest()} | own | drawn


def options_of(method: str, kind: str, rate: float) -> dict[str, Any]:
    options = METHODS[method][1] | OFF | {"learning_rate": rate, "seed": 0}
    if kind == "preserve":
        options["preserve"] = True
        if "method" not in options:
            options["floor"] = 1.0
    return options


def best_rate(found: Mapping[str, Any], method: str) -> float | None:
    """The rate with the largest mean of fidelity and alignment on the three subjects; None before all were run."""
    method, means = RATE_OF.get(method, method), {}
    for rate in RATES:
        cells = [found.get(f"{name}-{method}-{rate:g}") for name in TUNED]
        if None in cells:
            return None
        means[rate] = np.mean([cell["fidelity"] + cell["alignment"] for cell in cells if cell])
    return max(means, key=lambda rate: means[rate])


def grid(quick: bool = False) -> dict[str, Config]:
    """Learning rates first, and the cells of every method whose rate is chosen. No small slice: each trains."""
    if quick:
        return {}
    found = read(HERE)
    cells = {f"{name}-base": Config(name, strip=strip_of(name, "base")) for name in SCORED}
    for method in [method for method in METHODS if method not in RATE_OF]:
        for rate in RATES:
            for name in TUNED:
                cells[f"{name}-{method}-{rate:g}"] = Config(name, options_of(method, "plain", rate), tuning=True)
    for kind in KINDS:
        for method in METHODS:
            if rate := best_rate(found, method):
                for name in SCORED:
                    strip = strip_of(name, method) if kind == "plain" else None
                    cells[f"{name}-{method}-{kind}"] = Config(name, options_of(method, kind, rate), strip=strip)
    if rate := best_rate(found, "atoms"):
        for count, method in SIZES.items():
            for name in SIZED if method != "atoms" else ():
                options = options_of("atoms", "plain", rate) | {"num_atoms": count}
                cells[f"{name}-{method}-plain"] = Config(name, options)
    return cells


def strip_of(name: str, method: str) -> str | None:
    """The file for the images of a subject and method in figures 11 to 16, if they are in them."""
    return f"{name}-{method}.png" if name in SHOWN and method in GRID else None


def measure(config: Config) -> dict[str, Any]:
    task, folder = tasks.of_moji(config.name), subjects.CACHE / subjects.weights_digest() / "customization"
    names, num = METRICS, NUM
    if config.tuning:
        names, num, every = ("judge",), TUNING["num"], TUNING["every"]
        task = replace(task, prompts=task.prompts[::every], scenes=task.scenes[::every])
    models = load_models(names)
    values, images = learnt_and_scored(task, MOJI, config.options, names, folder, models, num, config="moji-paper")
    if config.strip:
        STRIPS.mkdir(exist_ok=True)
        shown = [task.images[0][1], *(images[place * NUM] for place in PICTURED)]
        prompts = [task.prompts[place] for place in PICTURED]
        sampling.save_png(beside(shown), STRIPS / config.strip, {"prompts": prompts})
    return values


def beside(images: Sequence[Image.Image]) -> Image.Image:
    """Images of one size in a row."""
    width, height = images[0].size
    row = Image.new("RGB", (width * len(images), height))
    for place, image in enumerate(images):
        row.paste(image, (place * width, 0))
    return row


def learnt_and_scored(
    task: Task,
    base: str,
    options: dict[str, Any] | None,
    names: Sequence[str],
    folder: Path,
    models: Mapping[str, Any],
    num: int,
    **common: Any,
) -> tuple[dict[str, Any], list[Image.Image]]:
    """Learn one subject and score `num` images of each prompt, and return these; with None as options, of the base
    alone. Runs are kept in `folder`."""
    values: dict[str, Any] = {}
    pipe = opened(base)
    if options is not None:
        run = folder / f"{task.name}-{_digest(options)}"
        pictures = run.with_name(f"{run.name}-images")  # of each run alone: another may be writing its own
        write_images(task, pictures)
        learnt = {"class_name": task.class_name, "token": TOKEN, "sample_every": 0, "checkpoint_every": 1_000_000}
        learnt |= (subjects.PLAIN if base == MOJI else {"report_to": "none"}) | common | {"base": base} | options
        start = time.perf_counter()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        numbers = atomtune.customize(pictures, out=run, **learnt)
        values = {"seconds": numbers["seconds"], "total_seconds": time.perf_counter() - start}
        values |= {"parameters": numbers["trainable_parameters"], "bytes": numbers["adapter_bytes"]}
        if torch.cuda.is_available():
            values["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
        atomtune.load_adapter(pipe, run)
    images = _drawn(pipe, task.prompts, num)
    plain = [without_tokens(prompt, [TOKEN]) for prompt in task.prompts]
    references = [image for _, image in task.images]
    values |= scores(models, names, images, plain, num, references)
    if task.scenes:
        values |= obeyed(images, [scene for scene in task.scenes for _ in range(num)])
    if {"drift", "pres", "div"} & {*names}:
        sets = metrics.other_prompts(task.class_name, *OTHERS)
        after = {key: _drawn(pipe, prompts) for key, prompts in sets.items()}
        before = {key: of_base(base, prompts, folder / "others" / task.name / key) for key, prompts in sets.items()}
        values |= changes(models, names, before, after, references)
    return values, images


def opened(base: str) -> Any:
    """To draw with; moji in bfloat16, as on a card, which is quicker on a CPU too."""
    return atomtune.load_base(base, "bfloat16" if base == MOJI else None, "auto")


def of_base(base: str, prompts: Sequence[str], folder: Path) -> list[Image.Image]:
    """The base's images of these prompts, drawn once."""
    pipe = opened(base)
    planned = sampling.plan(pipe, prompts, steps=_steps(pipe))
    sampling.draw_missing(pipe, planned, folder, batch_size=10)
    return [sampling.read_image(file) for file in sampling.planned_files(planned, folder)]


def _drawn(pipe: Any, prompts: Sequence[str], num: int = 1) -> list[Image.Image]:
    return [drawing.image for drawing in sampling.generate(pipe, prompts, num, steps=_steps(pipe), batch_size=10)]


def _steps(pipe: Any) -> int | None:
    return STEPS if pipe.name_or_path == MOJI else None


def obeyed(images: Sequence[Image.Image], scenes: Sequence[Any]) -> dict[str, float]:
    """Shares of the images that show what was asked for: each thing by itself, and all of them."""
    judge = metrics.load_judge()
    seen = [metrics.place_and_size(image) for image in images]
    right = {
        "name": judge.rank(list(images), [scene.name for scene in scenes]) == 0,
        "style": np.array([style == STYLE for style in judge.style(list(images))]),
        "background": np.array([metrics.background_colour(i) == s.background for i, s in zip(images, scenes)]),
        "place": np.array([found is not None and found[0] == scene.place for found, scene in zip(seen, scenes)]),
        "size": np.array([found is not None and found[1] == scene.size for found, scene in zip(seen, scenes)]),
    }
    shares = {f"right_{key}": float(values.mean()) for key, values in right.items()}
    return shares | {"obeyed": float(np.logical_and.reduce([*right.values()]).mean())}


def write_images(task: Task, folder: Path) -> None:
    """The images and their captions, as `customize` reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, (_, image) in enumerate(task.images):
        image.save(folder / f"{number}.png")
    lines = [json.dumps({"file_name": f"{number}.png", "text": text}) for number, (text, _) in enumerate(task.images)]
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")


def _digest(options: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(options, sort_keys=True, default=str).encode()).hexdigest()[:8]


# -- results ----------------------------------------------------------------------------------------------------------

COLUMNS = {  # heading: key, digits
    "parameters": ("parameters", 0),
    "fidelity": ("fidelity", 3),
    "alignment": ("alignment", 3),
    "diversity": ("vendi", 2),
    "obeyed in everything": ("obeyed", 3),
    "drift": ("pixels", 3),
    "drift of features": ("features", 3),
    "PRES": ("pres", 3),
    "DIV": ("div", 3),
    "seconds": ("seconds", 0),
    "MB": ("bytes", 2),
}


def values(found: Mapping[str, Any], method: str, kind: str, key: str) -> dict[str, float]:
    """By subject, of the cells that are there."""
    cells = {name: found.get(f"{name}-{method}-{kind}" if kind else f"{name}-{method}") for name in SCORED}
    scale = 1e-6 if key == "bytes" else 1
    return {name: scale * cell[key] for name, cell in cells.items() if cell and key in cell}


def differences(found: Mapping[str, Any], key: str, one: tuple[str, str], other: tuple[str, str]) -> list[float]:
    """One method less another, of each scored subject; nothing before all were scored with both."""
    a, b = (values(found, *way, key) for way in (one, other))
    return [a[name] - b[name] for name in SCORED] if len(a) == len(b) == len(SCORED) else []


def results(out: Path = HERE) -> str:
    found, rows = read(out), []
    ways = [("base", "")] + [(method, kind) for method in METHODS for kind in KINDS]
    for method, kind in ways:
        cells, count = [], len(values(found, method, kind, "fidelity"))
        if not count:
            continue
        for key, digits in COLUMNS.values():
            numbers = list(values(found, method, kind, key).values())
            if not numbers:
                cells.append("–")
            elif np.ptp(numbers) < 10**-digits or key == "seconds":
                cells.append(f"{np.mean(numbers):,.{digits}f}")
            else:
                cells.append(shown(numbers, digits))
        title = "the base" if method == "base" else f"{METHODS[method][0]} {KINDS[kind]}".strip()
        rows.append([title, str(count), *cells])
    sizes = table_2(found)
    rates = {method: rate for method in METHODS if (rate := best_rate(found, method))}
    chosen = "Learning rates: " + ", ".join(f"{METHODS[method][0]} {rate:g}" for method, rate in rates.items()) + "."
    return "\n\n".join(
        [table(["", "subjects", *COLUMNS], rows), *([chosen] if rates else []), *([sizes] if sizes else [])]
    )


TABLE_2 = {
    "fidelity": "fidelity",
    "alignment": "alignment",
    "vendi": "diversity",
    "obeyed": "obeyed in everything",
    "pixels": "drift",
}


def by_size(found: Mapping[str, Any], key: str) -> list[list[float]]:
    """A score of the subjects of Table 2, [sizes][subjects]; empty before all are there."""
    cells = [[found.get(f"{name}-{method}-plain") for name in SIZED] for method in SIZES.values()]
    return [[cell[key] for cell in own if cell] for own in cells] if all(map(all, cells)) else []


def table_2(found: Mapping[str, Any]) -> str:
    """Numbers of atoms at one density, on the same subjects; empty before all are there."""
    columns = [by_size(found, key) for key in TABLE_2]
    if not all(columns):
        return ""
    rows = [[str(count), *(shown(own[place], 3) for own in columns)] for place, count in enumerate(SIZES)]
    return f"Table 2, ρ = .04, {len(SIZED)} subjects:\n\n{table(['atoms a layer', *TABLE_2.values()], rows)}"


SCORES = (  # key, what is claimed of it, whether more is better
    ("fidelity", "are more faithful", 1),
    ("alignment", "are better aligned", 1),
    ("vendi", "are more diverse", 1),
    ("obeyed", "obey more prompts in everything", 1),
    ("pixels", "change other prompts less", -1),
)


def claims(out: Path = HERE) -> list[Claim]:
    """The rules were written before the first cell was run. None before all subjects were scored with both methods."""
    found, rules = read(out), []
    for kind, said in KINDS.items():
        mode = f", both with {said}" if said else ""
        for ours, others in (("atoms", ("lora", "dora", "oft")), ("few", ("lora",))):
            for other in others:
                for key, what, sign in SCORES:
                    title = f"A{METHODS[ours][0][1:]}, {what} than {METHODS[other][0]}{mode}"  # "Atoms, …"
                    rules.append((title, key, (ours, kind), (other, kind), sign, "Table 1"))
    for key, what, sign in SCORES:
        title = f"Atoms with σ after the map {what} than with σ before it"
        rules.append((title, key, ("after", "plain"), ("before", "plain"), sign, "orders"))
    made = [
        paired(title, own, sign, item)
        for title, key, one, other, sign, item in rules
        if (own := differences(found, key, one, other))
    ]
    for key, what, sign in SCORES:
        if own := by_size(found, key):
            trends = [trend([*SIZES], subject) for subject in zip(*own)]
            title = f"More atoms at the same density {what}"
            made.append(paired(title, trends, sign, "Table 2", "rank correlation with the number of atoms"))
    return made


def paper_scale() -> None:
    """Methods side by side on DreamBooth's subjects and any base, with the base's own recipe for atoms."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", required=True, help="folder or hub name")
    parser.add_argument("--subjects", required=True, type=Path, help="the folder of DreamBooth's dataset")
    parser.add_argument("--metrics", default="clip,dino,vendi,drift", help="as of `atomtune compare`")
    parser.add_argument("--clip-model", default=CLIP, help="folder or hub name of CLIP")
    parser.add_argument("--dino-model", default=DINO, help="folder or hub name of DINOv2")
    parser.add_argument("--only", nargs="+", help="these subjects alone")
    parser.add_argument("--methods", nargs="+", default=["lora", "atoms"], choices=["lora", "dora", "oft", "atoms"])
    parser.add_argument("--prompts", type=int, default=tasks.PROMPTS, help="the first so many prompts of each subject")
    parser.add_argument("--steps", type=int, help="training steps (by default those of the base's recipe)")
    parser.add_argument("--out", type=Path, default=Path("runs/customization"))
    given = parser.parse_args()
    found = tasks.of_dreambooth(given.subjects)
    length = {"steps": given.steps} if given.steps else {}
    names, folder = given.metrics.split(","), given.out / f"runs-{_digest({'base': given.base})}"
    models = load_models(names, given.clip_model, given.dino_model)

    @dataclass(frozen=True)
    class Cell:
        name: str
        options: dict[str, Any] | None

        @property
        def settings(self) -> dict[str, Any]:
            own = {"name": self.name, "options": self.options, "base": given.base, "subjects": str(given.subjects)}
            own |= {"metrics": given.metrics, "clip": given.clip_model, "dino": given.dino_model}
            return own | {"prompts": given.prompts, "num": NUM}

    cells = {}
    for name in given.only or found:
        task_cells = {f"{name}-base": Cell(name, None)}
        for method in given.methods:
            task_cells[f"{name}-{method}"] = Cell(name, {"method": method, "seed": 0} | length)
        cells |= task_cells

    def measured(cell: Cell) -> dict[str, Any]:
        task = found[cell.name]
        task = Task(task.name, task.class_name, task.images, task.prompts[: given.prompts])
        return learnt_and_scored(task, given.base, cell.options, names, folder, models, NUM)[0]

    run_cells(given.out, cells, measured)
    done = read(given.out)
    for method in ("base", *given.methods):
        numbers = [done[f"{name}-{method}"] for name in given.only or found]
        keys = [key for key, value in numbers[0].items() if isinstance(value, int | float)]
        print(method, {key: round(float(np.mean([one[key] for one in numbers])), 4) for key in keys})


if __name__ == "__main__":
    paper_scale()
