"""`atomtune demo`: the main job on a subject that the base has never seen, in about a minute on a laptop without a GPU.

Five images → customize → the same eight prompts for the base and for the adapter. Five prompts are the images' own
captions, three are contexts that no image shows.
"""

import json
import shutil
import time
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from atomtune.cli.hardware import DEFAULT_HARDWARE, Hardware
from atomtune.errors import check_seed

UNSEEN = (
    "a sks teapot on a red background",
    "a small sks teapot at the top on a black background",
    "a sks teapot on the right on an orange background",
)
NUM = 4  # images of each prompt
HEADS = {"base": "base", "atoms": "atoms", "lora": "LoRA r=16"}
ROWS = {  # key in summary.json: what is printed, and how
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
}


def demo(
    *,
    compare: bool = False,
    out: Path = Path("runs/demo"),
    seed: int = 0,
    steps: int | None = None,
    hardware: Hardware = DEFAULT_HARDWARE,
) -> None:
    """Learn a teapot from five bundled images and draw it on other backgrounds.

    Args:
        compare: Also train a LoRA of rank 16 on the same images, every other setting the same.
        out: Folder for grid.png, summary.json and adapter/.
        seed: Seed of the training and of the images.
        steps: Training steps (by default those of the recipe for moji).
    """
    check_seed(seed, NUM)
    start = time.perf_counter()
    from rich.console import Console
    from rich.table import Column, Table

    from atomtune import bases, files, manifest, metrics, sampling, training
    from atomtune.storage import folders
    from atomtune.storage.metadata import CONFIG_FILE
    from atomtune.training.data import find_examples, read_image

    names = ("grid.png", "summary.json", *(f"adapter/{name}" for name in folders.ADAPTER_FILES))
    files.refuse_output(out)
    manifest.refuse_foreign(out, *names)
    console = Console()
    methods = ("atoms", "lora") if compare else ("atoms",)
    options: dict[str, Any] = {"class_name": "teapot", "rank": 16, "seed": seed, "sample_every": 0, "overwrite": True}
    options |= hardware.for_training()
    if steps is not None:
        options["steps"] = steps
    with resources.as_file(resources.files("atomtune.moji") / "images" / "teapot") as folder:
        examples = {text: read_image(file) for file, text in find_examples(folder, "a sks teapot").items()}
        learnt = {}
        for method in methods:
            console.print(f"Learning a teapot from {len(examples)} images: {HEADS[method]}")
            learnt[method] = training.customize(folder, method=method, out=out / method, **options)

    judge = metrics.load_judge()
    prompts = [*examples, *UNSEEN]
    rows = {"learnt from": list(examples.values())}
    summary: dict[str, Any] = {}
    for method in ("base", *methods):
        console.print(f"Drawing and judging {len(prompts)} prompts: {HEADS[method]}")
        pipe = bases.load_base(bases.MOJI, hardware.dtype, hardware.device)
        drawings, numbers = _draw(pipe, out / method, prompts, seed, learnt.get(method))
        images = [drawing.image for drawing in drawings]
        rows[HEADS[method]] = images[::NUM]
        numbers |= _judged(judge, images, list(examples.values()), prompts)
        # As printed, so that the table and the file hold the same numbers.
        summary[method] = {
            key: json.loads(f"{numbers[key]:{ROWS[key][1].strip(',')}}") for key in ROWS if key in numbers
        }

    manifest.record(out, *(out / name for name in names))
    sampling.save_png(sampling.grid(list(rows.values()), list(rows), prompts), out / "grid.png", {"seed": seed})
    with files.atomic_folder(out / "adapter", seal=CONFIG_FILE) as temporary:
        shutil.copytree(out / "atoms" / "adapter", temporary, dirs_exist_ok=True)
    summary |= {"prompts": prompts, "unseen": list(UNSEEN), "seconds": round(time.perf_counter() - start)}
    summary |= bases.precision_and_device(pipe)
    files.write_text(out / "summary.json", json.dumps(summary, indent=2))
    printed = Table("", *(Column(HEADS[method], justify="right") for method in ("base", *methods)))
    for label, values in table(summary, ("base", *methods)):
        printed.add_row(label, *values)
    console.print(printed)
    console.print(str(judge), soft_wrap=True)
    console.print(f"{summary['seconds']} s in all. Look at {out / 'grid.png'}", soft_wrap=True)
    console.print(f"Numbers: {out / 'summary.json'}   adapter: {out / 'adapter'}", soft_wrap=True)
    console.print(f'Now try: atomtune generate {out} --prompt "{UNSEEN[0]}"', soft_wrap=True)


def _draw(pipe: Any, run: Path, prompts: list[str], seed: int, learnt: dict[str, Any] | None):
    """`NUM` images of each prompt, with the run's adapter if something was learnt, and numbers of the adapter."""
    from contextlib import nullcontext

    from atomtune import sampling
    from atomtune.storage import folders
    from atomtune.tracing import trace

    numbers: dict[str, Any] = {}
    watch = nullcontext()
    if learnt:
        model = folders.load_adapter(pipe, run)
        numbers = {"train_seconds": learnt["seconds"], "parameters": learnt["trainable_parameters"]}
        numbers["megabytes"] = learnt["adapter_bytes"] / 1e6
        if learnt["method"] == "atoms":
            watch = trace(model)
    with watch as codes:
        drawings = sampling.generate(pipe, prompts, NUM, seed)
    if codes:
        numbers |= {"atoms": sum(len(layer.fired) for layer in codes.layers), "alive": codes.alive}
        numbers["used_per_token"] = codes.active_per_token
    for drawing in drawings:
        drawing.settings |= sampling.made_by(pipe, run if learnt else None)
    sampling.save_images(drawings, run / "generated")
    return drawings, numbers


def _judged(judge, images: list, references: list, prompts: list[str]) -> dict[str, float]:
    """The scores of the judge and of the pixels, as means over all images."""
    from atomtune import metrics
    from atomtune.moji.scenes import BACKGROUNDS

    plain = [prompt.replace("sks ", "") for prompt in prompts for _ in range(NUM)]  # the judge knows what a teapot is
    groups = [metrics.diversity(judge.features(images[i : i + NUM])) for i in range(0, len(images), NUM)]
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
