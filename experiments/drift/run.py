"""What an adapter does to everything else: `python -m experiments --only drift`

Six subjects that moji has never seen, scored on their own prompts (fidelity, alignment) and on other prompts at the
same noise as the base (`metrics.other_prompts`: unrelated things, neighbours of the class, the class without the
token). Cells `SUBJECT-METHOD-KIND-SEED` are runs of 200 steps, scored at their end; `…-dials` are the same with the
dials of sampling turned, `…-curve` runs of 40 to 600 steps. `METHOD-time` is how much longer a step takes with
`--preserve`, for a quiet machine.
"""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import atomtune
from atomtune import metrics, sampling
from atomtune.bases import denoiser
from atomtune.files import atomic_folder
from atomtune.moji.names import SEEN_NAMES, spoken
from atomtune.storage.folders import set_scale
from atomtune.storage.reading import adapter_info
from experiments.common import subjects
from experiments.common.cells import measured, read, shown, spread
from experiments.common.report import DOCS, Claim, grade, table, verdicts
from pretraining.drawings import Drawings

HERE = Path(__file__).parent
NUM, DRAWN = 4, 20  # images of each of the subject's prompts, and steps of drawing them, as moji's are drawn
SEEDS = (0, 1, 2)
BOTH = {"target_modules": ("attn1", "attn2"), "learning_rate": 4e-3}
METHODS: dict[str, tuple[str, dict[str, Any]]] = {  # name in the cells: heading, options of `customize`
    "lora": ("LoRA, rank 16", BOTH | {"method": "lora"}),
    "values": ("atoms on the values", {"target_modules": ("attn1.to_v", "attn2.to_v"), "learning_rate": 8e-3}),
    "atoms": ("atoms beside attention, Aσ(XW_s)", BOTH | {"mix_first": False}),
    "lora-64": ("LoRA, rank 64", BOTH | {"method": "lora", "rank": 64}),
    "dora": ("DoRA, rank 16", BOTH | {"method": "dora"}),
    "oft": ("OFT, r = 4", BOTH | {"method": "oft", "learning_rate": 1e-3}),
    "lora-self": ("LoRA, rank 16, self-attention alone", {"method": "lora", "learning_rate": 4e-3}),
}
OWN = ("lora", "values")  # what the claims are about: three seeds; the others have one
OFF: dict[str, Any] = {"preserve": False, "floor": 0.0, "steps": 200, "lr_scheduler": "cosine"}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("", OFF),
    "preserve": ("--preserve", OFF | {"preserve": True}),
    "floor": ("--preserve, floor", OFF | {"preserve": True, "floor": 1.0}),
}
STEPS = (40, 100, 200, 600)
DIALS = {
    "scale": (0.75, 0.5, 0.25),
    "density": (0.02, 0.01),
    "floor": (0.9, 0.99, 0.999, 1.0),
}
ROUNDS, STEPS_TIMED = 5, 60
QUICKLY = (2, 20)  # for curves and dials: images of each of the subject's prompts, and unrelated prompts
FIGURES = (  # file, what a reader without images is told, what is below it
    (
        "drift-steps.png",
        "Fidelity and alignment against drift, over training steps",
        "Lines: runs of 40 to 600 steps, the mean over subjects; bands: one standard error of it. Dotted: as it is; "
        "dashed: with `--preserve`; drawn through: with a floor too. Up and to the left is better.",
    ),
    (
        "drift-dials.png",
        "Fidelity and alignment against drift, as dials of sampling are turned",
        "The same, of runs of 200 steps whose scale, density or floor is turned when images are drawn.",
    ),
    (
        "drift-frontier.png",
        "Alignment and diversity against fidelity, over training steps and over dials",
        "The frontier of the methods: means over the subjects, bands are 95 % intervals over them. Up and to the right "
        "is better.",
    ),
)
SLUGS = {spoken(name): name for name in SEEN_NAMES}


@dataclass(frozen=True)
class Config:
    """One cell: a subject, and the options of `customize` (None: the base alone)."""

    name: str
    options: dict[str, Any] | None = field(default=None)
    what: str = "end"
    """"end": scored at the end of the run, "curve": on the way, "dials": with the dials of sampling turned, "time":
    not scored."""

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "base": subjects.weights_digest(), "name": self.name, "options": self.options, "drawn": DRAWN,
            "what": {"end": [self.what, NUM], "curve": [STEPS, QUICKLY], "dials": [DIALS, QUICKLY],
                     "time": [self.what, ROUNDS, STEPS_TIMED]}[self.what],
        }  # fmt: skip


@cache
def base_images(name: str) -> dict[str, list[Image.Image]]:
    """The base's images of every set of other prompts; drawn once for the base's weights as they are."""
    folder = subjects.CACHE / subjects.weights_digest() / "others" / f"{name}{DRAWN}"
    sets = metrics.other_prompts(name)
    for label, prompts in sets.items():
        if not (folder / label).is_dir():
            drawings = sampling.generate(subjects.moji(), prompts, steps=DRAWN, batch_size=10)
            with atomic_folder(folder / label) as temporary:
                sampling.save_images(drawings, temporary)
    return {
        label: [Image.open(file).convert("RGB") for file in sorted((folder / label).glob("*.png"))] for label in sets
    }


def measure(config: Config) -> dict[str, Any]:
    pipe = subjects.moji()
    if config.options is None:
        return scores(pipe, config.name)
    if config.what == "time":
        return timed(config.name, config.options)
    if config.what == "curve":
        return {"steps": along(config.name, config.options)}
    run, numbers = subjects.train(config.name, **config.options)
    learnt = {"seconds": numbers["seconds"], "parameters": numbers["trainable_parameters"]}
    atomtune.load_adapter(pipe, run)
    if config.what == "dials":
        return {"dials": turned(pipe, config.name, run)}
    found = scores(pipe, config.name)
    if adapter_info(run).kind == "ATOMS":
        found |= silence(pipe, config.name)
    return learnt | found


def scores(pipe: Any, name: str) -> dict[str, Any]:
    """Everything."""
    judge = metrics.load_judge()
    found: dict[str, Any] = subjects.score(subjects.draw(pipe, name, NUM, steps=DRAWN), name)
    references = [Drawings().picture(scene) for scene in subjects.task(name).shown.values()]
    for label, prompts in metrics.other_prompts(name).items():
        images = _images(pipe, prompts)
        values = asdict(metrics.drift(base_images(name)[label], images, judge.features))
        if label == "class":
            values["pres"] = metrics.pres(images, references, judge.features)
            values["div"] = metrics.div(images, judge.features)
        else:
            values["recognised"] = _recognised(images, prompts)
        found[label] = values
    return found


def quick_scores(pipe: Any, name: str) -> dict[str, float]:
    """Fidelity, alignment, diversity and drift on unrelated prompts, of few images."""
    num, others = QUICKLY
    found = subjects.score(subjects.draw(pipe, name, num, steps=DRAWN), name)
    images = _images(pipe, metrics.other_prompts(name)["unrelated"][:others])
    drift = metrics.drift(base_images(name)["unrelated"][:others], images, metrics.load_judge().features)
    return {key: found[key] for key in ("fidelity", "alignment", "diversity")} | asdict(drift)


def along(name: str, options: dict[str, Any]) -> dict[str, dict[str, float]]:
    """The scores of runs of some lengths: each has a schedule, and a floor, of its own."""
    found = {}
    for step in STEPS:
        pipe = subjects.moji()
        atomtune.load_adapter(pipe, subjects.train(name, **options | {"steps": step})[0])
        found[str(step)] = quick_scores(pipe, name)
    return found


def turned(pipe: Any, name: str, run: Path) -> dict[str, dict[str, float]]:
    """The scores at every value of the dials of sampling that the adapter has, "scale 0.5", and as it was trained."""
    found, model = {"trained": quick_scores(pipe, name)}, denoiser(pipe)
    kind = adapter_info(run).kind
    for value in DIALS["scale"] if kind != "OFT" else ():
        set_scale(model, value)
        found[f"scale {value:g}"] = quick_scores(pipe, name)
        set_scale(model, 1.0)
    if kind != "ATOMS":
        return found
    atoms = atomtune.board(pipe)
    if not atoms.dictionaries[0].floor.measured:
        _measure_floor(pipe, atoms, name)
    for value in DIALS["density"]:
        atoms.density = value
        found[f"density {value:g}"] = quick_scores(pipe, name)
        atoms.reset()
    for value in DIALS["floor"]:
        atoms.floor = value
        found[f"floor {value:g}"] = quick_scores(pipe, name)
        atoms.reset()
    return found


def _measure_floor(pipe: Any, atoms: Any, name: str) -> None:
    """For an adapter that was trained without `--preserve`: on the prompts that `--preserve` takes."""
    from atomtune.training import configure
    from atomtune.training.preserving import other_prompts

    groups = other_prompts(configure(images="-", class_name=name, out="-", preserve=True), [name])
    prompts = list(dict.fromkeys(prompt for group in groups for prompt in group))
    with atoms.measure_floor():
        sampling.generate(pipe, prompts, steps=DRAWN, batch_size=10)


def timed(name: str, options: dict[str, Any]) -> dict[str, list[float]]:
    """Seconds of a step with and without `--preserve`, of short runs that take turns."""
    found: dict[str, list[float]] = {kind: [] for kind in ("plain", "preserve")}
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder) / "images"
        subjects.pictures(name, images)
        for number in range(ROUNDS):
            for kind, seconds in found.items():
                own = options | KINDS[kind][1] | {"steps": STEPS_TIMED, "class_name": name, "sample_every": 0}
                out = Path(folder) / f"{kind}-{number}"
                numbers = atomtune.customize(images, out=out, config="moji-paper", **subjects.PLAIN | own)
                seconds.append(numbers["seconds"] / STEPS_TIMED)
    return found


def silence(pipe: Any, name: str) -> dict[str, float]:
    """Shares of the tokens, over layers and steps, in which no atom fires: on other prompts (words and image), in
    images of the subject's own, and on the background of these."""
    with atomtune.trace(pipe) as seen:
        _images(pipe, metrics.other_prompts(name)["unrelated"][: QUICKLY[1]])
    found = {"silent_unrelated": seen.silent}
    background = []
    with fired(pipe) as layers:
        images = subjects.draw(pipe, name, 1, steps=DRAWN)
    config = denoiser(pipe).config
    places = (config.sample_size // config.patch_size) ** 2
    of_image = [torch.stack(steps) for steps in layers if steps[0].shape[1] == places]  # others see the words
    tokens = torch.stack(of_image)  # [layers, steps, images, tokens]
    silent = (~tokens).float().mean((0, 1))
    for image, shares in zip(images, silent):
        side = round(places**0.5)
        own = np.asarray(image.convert("RGB").resize((side * 4, side * 4)), dtype=float)
        colour = np.median(np.concatenate([own[0], own[-1], own[:, 0], own[:, -1]]), axis=0)
        plain = (np.abs(own - colour).max(-1) < 40).reshape(side, 4, side, 4).all((1, 3)).ravel()
        background += shares[torch.from_numpy(plain)].tolist()
    return found | {"silent_own": float(silent.mean()), "silent_background": float(np.mean(background))}


@contextmanager
def fired(pipe: Any) -> Iterator[list[list[torch.Tensor]]]:
    """For each layer and step, whether any atom fires, [images, tokens]; of the half of the batch with the prompt."""
    found, hooks = [], []
    for dictionary in atomtune.board(pipe).dictionaries:
        steps: list[torch.Tensor] = []

        def watch(_module: Any, inputs: tuple, steps: list[torch.Tensor] = steps) -> None:
            codes = inputs[0]
            steps.append((codes[len(codes) // 2 :] != 0).any(-1))

        hooks.append(dictionary.decoder.register_forward_pre_hook(watch))
        found.append(steps)
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _images(pipe: Any, prompts: Sequence[str]) -> list[Image.Image]:
    return [drawing.image for drawing in sampling.generate(pipe, prompts, steps=DRAWN, batch_size=10)]


def _recognised(images: Sequence[Image.Image], prompts: Sequence[str]) -> float:
    """Share of the images whose thing the judge names first."""
    names = [SLUGS[prompt.split(" on ")[0].split(" ", 1)[1]] for prompt in prompts]
    return float(np.mean(metrics.load_judge().rank(list(images), names) == 0))


def kinds(method: str) -> list[str]:
    """The ways to train a method: a floor is atoms' alone."""
    return [kind for kind in KINDS if kind != "floor" or METHODS[method][1].get("method") is None]


def grid(quick: bool = False) -> dict[str, Config]:
    """There is no small slice: every cell trains an adapter. What the claims need comes first."""
    if quick:
        return {}
    cells = {f"{name}-base": Config(name) for name in subjects.SUBJECTS}
    others = [method for method in METHODS if method not in OWN]
    for seed, method in [(seed, own) for seed in SEEDS for own in OWN]:
        cells |= _cells(method, {str(seed): (seed, "end")})
    for method in OWN:
        cells |= _cells(method, {"curve": (0, "curve"), "dials": (0, "dials")})
    for method in reversed(others):
        cells |= _cells(method, {"0": (0, "end")})
    for method in others[:-1]:
        cells |= _cells(method, {"curve": (0, "curve"), "dials": (0, "dials")})
    return cells | {f"{method}-time": Config("teapot", METHODS[method][1], "time") for method in OWN}


def _cells(method: str, endings: dict[str, tuple[int, str]]) -> dict[str, Config]:
    """Cells of a method, by what their names end with: a seed, and what of them is scored."""
    return {
        f"{name}-{method}-{kind}-{ending}": Config(name, METHODS[method][1] | KINDS[kind][1] | {"seed": seed}, what)
        for ending, (seed, what) in endings.items()
        for kind in kinds(method)
        for name in subjects.SUBJECTS
    }


def values(found: dict[str, Any], method: str, kind: str, *path: str) -> np.ndarray:
    """[subjects × seeds] of the cells that are there; `path` leads to the number in a cell."""
    return _numbers(found, [f"{name}-{method}-{kind}-{seed}" for seed in SEEDS for name in subjects.SUBJECTS], path)


def of_base(found: dict[str, Any], *path: str) -> np.ndarray:
    """[subjects]: a number of the base alone."""
    return _numbers(found, [f"{name}-base" for name in subjects.SUBJECTS], path)


def _numbers(found: dict[str, Any], cells: Sequence[str], path: Sequence[str]) -> np.ndarray:
    numbers = []
    for cell in cells:
        value: Any = found.get(cell)
        for key in path:
            value = value and value.get(key)
        if value is not None:
            numbers.append(value)
    return np.array(numbers)


COLUMNS = {  # heading: where the number is, digits
    "fidelity": (("fidelity",), 2),
    "alignment": (("alignment",), 2),
    "drift, unrelated": (("unrelated", "pixels"), 3),
    "neighbours": (("neighbours", "pixels"), 3),
    "class": (("class", "pixels"), 3),
    "drift of features": (("unrelated", "features"), 3),
    "recognised": (("unrelated", "recognised"), 2),
    "unchanged": (("unrelated", "unchanged"), 2),
    "silent, unrelated": (("silent_unrelated",), 2),
    "own": (("silent_own",), 2),
    "own background": (("silent_background",), 2),
}


def results(out: Path = HERE) -> str:
    found = read(out)
    rows = []
    for method, (title, _) in METHODS.items():
        for kind in kinds(method):
            if not (count := len(values(found, method, kind, "fidelity"))):
                continue
            cells = []
            for path, digits in COLUMNS.values():
                numbers = values(found, method, kind, *path)
                cells.append(spread(numbers, digits) if len(numbers) else "–")
            rows.append([f"{title} {KINDS[kind][0]}".strip(), str(count), *cells])
    own_scores = ("fidelity", "alignment", "recognised")  # the others are 0, or of adapters
    own = [spread(of_base(found, *path), d) if head in own_scores else "–" for head, (path, d) in COLUMNS.items()]
    count = str(len(of_base(found, "fidelity")))
    return table(["trained", "runs", *COLUMNS], [["the base", count, *own], *rows])


SUMMARY = {  # of README's table: row, where the number is, digits
    "trained parameters": (("parameters",), 0),
    "fidelity to the five images": (("fidelity",), 2),
    "alignment with the prompt": (("alignment",), 2),
    "share with the background asked for": (("background",), 2),
    f"diversity, of {NUM} images of a prompt": (("diversity",), 2),
    "drift: how much images of other prompts change": (("unrelated", "pixels"), 3),
    "other prompts recognised": (("unrelated", "recognised"), 2),
}


def summary(out: Path = HERE) -> str:
    """README's table: the recipes moji and moji-lora, and a LoRA as it is."""
    found = read(out)
    columns = {"LoRA": ("lora", "plain"), "LoRA, `--preserve`": ("lora", "preserve"), "atoms": ("values", "floor")}

    def every(path: Sequence[str]) -> list[np.ndarray]:
        return [of_base(found, *path), *(values(found, *column, *path) for column in columns.values())]

    rows = [[label, *(shown(numbers, digits) for numbers in every(path))] for label, (path, digits) in SUMMARY.items()]
    rows.append(["runs", *(str(len(numbers)) for numbers in every(["fidelity"]))])
    return table(["", "base", *columns], rows)


def claims(out: Path = HERE) -> list[Claim]:
    """The rule was fixed before the runs of `grid` (the README says on which subjects the recipe was found).
    Fidelity and alignment are held against the better of the two LoRAs of rank 16, drift against the lesser drift. None
    as long as no seed has all runs of all subjects; seeds that have not are left out."""
    found = read(out)
    needed = [f"{name}-{way}" for name in subjects.SUBJECTS for way in ("values-floor", "lora-plain", "lora-preserve")]
    seeds = tuple(f"-{seed}" for seed in SEEDS if all(f"{cell}-{seed}" in found for cell in needed))
    if not seeds:
        return []
    found = {name: cell for name, cell in found.items() if name.endswith(("-base", *seeds))}

    def means(kind: str, *path: str, methods: Sequence[str] = ("lora", "lora-self")) -> list[float]:
        every = (values(found, method, kind, *path) for method in methods)
        return [float(numbers.mean()) for numbers in every if len(numbers)]

    def atoms(*path: str) -> float:
        return means("floor", *path, methods=["values"])[0]

    drift = ("unrelated", "pixels")
    fidelity, plain = atoms("fidelity"), max(means("plain", "fidelity"))
    moved, lora, matched = atoms(*drift), min(means("plain", *drift)), min(means("preserve", *drift))
    base = float(of_base(found, "unrelated", "recognised").mean())
    seen = atoms("unrelated", "recognised")
    aligned, other = atoms("alignment"), max(means("plain", "alignment"))
    return [
        Claim(
            "Atoms learn as much as LoRA", f"fidelity {fidelity:.3f} and {plain:.3f}",
            "fidelity at least LoRA's less .02", grade(fidelity >= plain - 0.02),
        ),
        Claim(
            "and leave the rest alone",
            f"drift {moved:.3f}; LoRA {lora:.3f}, with `--preserve` {matched:.3f}",
            "at most a fifth of LoRA's drift, and two fifths of that of LoRA with `--preserve`",
            grade(moved <= lora / 5, moved <= matched * 2 / 5),
        ),
        Claim(
            "Unrelated prompts are drawn as well as by the base",
            f"{seen:.3f} recognised, {base:.3f} by the base", "within .03", grade(abs(seen - base) <= 0.03),
        ),
        Claim(
            "and the subject's prompts are obeyed", f"alignment {aligned:.3f} and {other:.3f}",
            "alignment no lower than LoRA's", grade(aligned >= other),
        ),
    ]  # fmt: skip


def price(out: Path = HERE) -> str:
    """How much longer a step takes with `--preserve`: a sentence, empty as long as it was not measured."""
    said = []
    for method in OWN:
        if seconds := read(out).get(f"{method}-time"):
            longer = 100 * (np.divide(seconds["preserve"], seconds["plain"]) - 1)
            said.append(f"{spread(longer, 0)} % with {METHODS[method][0]}")
    return f"A step takes longer by {' and '.join(said)} ({ROUNDS} pairs of runs in turn, two cores)." if said else ""


def page(out: Path = HERE) -> str:
    missing = len(grid().keys() - read(out).keys())
    figures = [
        f"![{title}](figures/{file})\n\n{said}"
        for file, title, said in FIGURES
        if (DOCS / "results" / "figures" / file).is_file()
    ]
    return "\n\n".join(
        [
            """# An adapter that leaves the rest alone

Generated by `python -m experiments` from `experiments/drift/results.jsonl`; edit nothing here. How to do it is on
[a page of its own](../how-to/keep-the-rest.md).

Six subjects that moji has never seen, five images each, 200 steps, every method beside self- and cross-attention
unless it says otherwise. Fidelity and alignment are the
judge's, on the subject's own prompts. Drift is how much images of other prompts change when the adapter is switched
on, at the same noise: the root mean square of the pixels' differences (black to white is 1), on 40 unrelated things, 10
neighbours of the class, and the class without the token; of features, as PEFT's image benchmark counts it, on the
unrelated ones. Recognised: the share of the unrelated images whose thing the judge names first. Silent: the share of
tokens, over layers and steps, at which no atom fires. Mean ± standard deviation over subjects and seeds.""",
            results(out),
            *([f"Not all of it was run yet: {missing} of {len(grid())} cells are missing."] if missing else []),
            *([verdicts(found)] if (found := claims(out)) else []),
            *figures,
            f"""`--preserve` takes one row of other prompts in each step beside 5 images; their noise and targets are
computed once. {price(out)} The floor is measured after 15 % of the run, on all noised examples of them; then D alone
trains on, and rows of other prompts, which would add nothing, are left out. Every subject had a part in finding the
recipe, with seed 0 (experiments/drift/README.md says how, and what was tried in vain); the numbers of the rule for the
verdicts were committed before all of it.
{measured(out)}""",
        ]
    )
