"""`atomtune demo`: the main job on a subject that the base has never seen, on a laptop without a GPU.

Five images → customize → the same eight prompts for the base and for the adapter. Five prompts are the images' own
captions, three are contexts that no image shows.
"""

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any

from atomtune.cli.hardware import DEFAULT_HARDWARE, Hardware
from atomtune.errors import check_seed
from atomtune.shell import command_line

UNSEEN = (
    "a sks teapot on a red background",
    "a small sks teapot at the top on a black background",
    "a sks teapot on the right on an orange background",
)
NUM = 4  # images of each prompt
OTHERS = (10, 5)  # prompts that have little to do with a teapot, and prompts of things like it
FILES = ("grid.png", "demo.json")
HEADS = {"base": "base", "atoms": "atoms", "lora": "LoRA r=16"}
ROWS = {  # key in demo.json: what is printed, and how
    "train_seconds": ("training time, s", ".0f"),
    "parameters": ("trained parameters", ",d"),
    "megabytes": ("adapter on disk, MB", ".2f"),
    "atoms": ("atoms, all layers", ",d"),
    "alive": ("atoms alive", ",d"),
    "used_per_token": ("atoms used per token and layer", ".1f"),
    "fidelity": ("fidelity to the five images", ".3f"),
    "alignment": ("alignment with the prompt", ".3f"),
    "background": ("share with the background asked for", ".2f"),
    "diversity": (f"diversity, of {NUM} images of a prompt", ".2f"),
    "pixels": ("drift: how much other prompts change", ".3f"),
    "unchanged": ("share of them that do not change", ".2f"),
}


def demo(
    *,
    compare: bool = False,
    out: Path = Path("runs/demo"),
    seed: int = 0,
    steps: int | None = None,
    overwrite: bool = False,
    hardware: Hardware = DEFAULT_HARDWARE,
) -> None:
    """Learn a teapot from five bundled images and draw it on other backgrounds.

    OUT is the run of the teapot, as `customize` writes it. The same command continues a stopped demo.

    Args:
        compare: Also train a LoRA of rank 16 on the same images, with the recipe moji-lora (a run in OUT/lora).
        out: Folder for the run, grid.png and demo.json (the scores).
        seed: Seed of the training and of the images.
        steps: Training steps (by default those of the recipe for moji).
        overwrite: Start over if OUT holds a demo already.
    """
    try:
        _demo(compare, out, seed, steps, overwrite, hardware)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("stopped: the same command goes on from here.") from None


def _demo(compare: bool, out: Path, seed: int, steps: int | None, overwrite: bool, hardware: Hardware) -> None:
    check_seed(seed, NUM)
    start = time.perf_counter()
    from rich.console import Console
    from rich.table import Column, Table

    from atomtune import bases, files, manifest, metrics, sampling, training
    from atomtune.cli.generate import drawing_command
    from atomtune.storage.folders import adapter_info, load_adapter
    from atomtune.training.data import find_examples, read_image

    files.refuse_output(out)
    manifest.refuse_foreign(out, *FILES)
    console = Console()
    methods = ("atoms", "lora") if compare else ("atoms",)
    runs = {"base": None, "atoms": out, "lora": out / "lora"}
    options: dict[str, Any] = {"class_name": "teapot", "rank": 16, "seed": seed, "sample_every": 0}
    options |= {"overwrite": overwrite} | hardware.for_training()
    if steps is not None:
        options["steps"] = steps
    with resources.as_file(resources.files("atomtune.moji") / "images" / "teapot") as folder:
        examples = {text: read_image(file) for file, text in find_examples(folder, "a sks teapot").items()}
        learnt = {}
        for method in methods:
            goes_on = not overwrite and (runs[method] / "config.yaml").is_file()
            what = f"Going on with {runs[method]}" if goes_on else f"Learning a teapot from {len(examples)} images"
            console.print(f"{what}: {HEADS[method]}", soft_wrap=True, highlight=False)
            learnt[method] = training.customize(folder, method=method, out=runs[method], **options)

    judge = metrics.load_judge()
    prompts = [*examples, *UNSEEN]
    rows = {"learnt from": list(examples.values())}
    untouched: list[Any] = []  # the base's images of other prompts
    summary: dict[str, Any] = {}
    for method in ("base", *methods):
        console.print(f"Drawing and judging {len(prompts)} prompts: {HEADS[method]}")
        pipe = bases.load_base(bases.MOJI, hardware.dtype, hardware.device)
        if runs[method]:
            load_adapter(pipe, runs[method])
        images = _draw(pipe, out, runs[method], prompts, seed, NUM)
        rows[HEADS[method]] = images[::NUM]
        numbers = _sizes(learnt[method], runs[method]) if method in learnt else {}
        numbers |= _judged(judge, images, list(examples.values()), prompts)
        if compare:
            sets = metrics.other_prompts("teapot", *OTHERS)
            images = _draw(pipe, out, runs[method], [*sets["unrelated"], *sets["neighbours"]], seed, 1, "others")
            untouched = untouched or images
            numbers |= asdict(metrics.drift(untouched, images, None))
        # As printed, so that the table and the file hold the same numbers.
        summary[method] = {
            key: json.loads(f"{numbers[key]:{ROWS[key][1].strip(',')}}") for key in ROWS if key in numbers
        }

    manifest.record(out, *(out / name for name in FILES))
    grid, scores = (out / name for name in FILES)
    sampling.save_png(sampling.grid(list(rows.values()), list(rows), prompts), grid, {"seed": seed})
    summary |= {"prompts": prompts, "unseen": list(UNSEEN)} | bases.precision_and_device(pipe)
    files.write_text(scores, json.dumps(summary, indent=2))
    printed = Table("", *(Column(HEADS[method], justify="right") for method in ("base", *methods)))
    for label, values in table(summary, ("base", *methods)):
        printed.add_row(label, *values)
    console.print(printed)
    for line in (
        f"Done in {time.perf_counter() - start:.0f} s. The adapter is in {out / 'adapter'}, these numbers in {scores}.",
        f"Look first at {grid}: the images it learnt from, and below them what the base and the adapter draw.",
        f"Then draw the teapot yourself:  {drawing_command(out, adapter_info(out))}",
        f"And see what its atoms do:      {command_line('inspect', out)}",
    ):
        console.print(line, soft_wrap=True, highlight=False)


def _draw(
    pipe: Any, out: Path, run: Path | None, prompts: list[str], seed: int, num: int, name: str = "generated"
) -> list[Any]:
    """`num` images of each prompt, in the folder of `run` if there is one. Images that are there already are not
    drawn again."""
    from atomtune import manifest, sampling

    planned = [own | sampling.made_by(pipe, run) for own in sampling.plan(pipe, prompts, num, seed)]
    images = sampling.planned_files(planned, run / name if run else out / "base" / name)
    manifest.record(run or out, *images)
    sampling.draw_missing(pipe, planned, images[0].parent)
    return [sampling.read_image(file) for file in images]


def _sizes(learnt: dict[str, Any], run: Path) -> dict[str, Any]:
    """What the numbers of a run say of its training and its adapter."""
    from atomtune.storage.metadata import atoms_in

    sizes: dict[str, Any] = {"train_seconds": learnt["seconds"], "parameters": learnt["trainable_parameters"]}
    sizes["megabytes"] = learnt["adapter_bytes"] / 1e6
    if learnt["method"] == "atoms":
        sizes["atoms"] = sum(atoms_in(run / "adapter"))
        sizes |= {"alive": learnt["live_atoms"], "used_per_token": learnt["active_per_token"]}
    return sizes


def _judged(judge, images: list, references: list, prompts: list[str]) -> dict[str, float]:
    """The scores of the judge and of the pixels, as means over all images."""
    from atomtune import metrics
    from atomtune.moji.scenes import BACKGROUNDS

    plain = [prompt.replace("sks ", "") for prompt in prompts for _ in range(NUM)]  # the judge knows what a teapot is
    groups = [metrics.vendi(judge.features(images[i : i + NUM])) for i in range(0, len(images), NUM)]
    colours = [next(word for word in prompt.split() if word in BACKGROUNDS) for prompt in plain]
    followed = [metrics.background_colour(image) == colour for image, colour in zip(images, colours)]
    return {
        "fidelity": float(judge.fidelity(images, references).mean()),
        "alignment": float(judge.alignment(images, plain).mean()),
        "background": sum(followed) / len(followed),
        "diversity": sum(groups) / len(groups),
    }


def table(summary: dict[str, Any], methods: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """The rows that are printed: a label, and a value for each method."""
    for key, (label, form) in ROWS.items():
        if any(key in summary[method] for method in methods):
            yield label, [f"{summary[method][key]:{form}}" if key in summary[method] else "–" for method in methods]
