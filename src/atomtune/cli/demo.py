"""`atomtune demo`: the main job on a subject that the base has never seen, on a laptop without a GPU.

Five images → customize → the same eight prompts for the base and for the adapter. Five prompts are the images' own
captions, three are contexts that no image shows.
"""

import time
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

    OUT is the run of the teapot, as `customize` writes it, and beside it what `compare` writes. The same command
    continues a stopped demo.

    Args:
        compare: Also train a LoRA of rank 16 on the same images, with the recipe moji-lora (a run in OUT/lora).
        out: Folder for the run, grid.png and scores.json.
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

    from atomtune import comparing, files, manifest, training
    from atomtune.cli.compare import print_table
    from atomtune.cli.generate import drawing_command
    from atomtune.storage.reading import adapter_info
    from atomtune.training.data import find_examples

    files.refuse_output(out)
    manifest.refuse_foreign(out, *comparing.RESULTS)
    console = Console()
    runs = {"atoms": out, "LoRA": out / "lora"} if compare else {"atoms": out}
    options: dict[str, Any] = {"class_name": "teapot", "rank": 16, "seed": seed, "sample_every": 0}
    options |= {"overwrite": overwrite} | hardware.for_training()
    if steps is not None:
        options["steps"] = steps
    with resources.as_file(resources.files("atomtune.moji") / "images" / "teapot") as folder:
        captions = list(find_examples(folder, "a sks teapot").values())
        for method, run in runs.items():
            goes_on = not overwrite and (run / "config.yaml").is_file()
            what = f"Going on with {run}" if goes_on else f"Learning a teapot from {len(captions)} images"
            console.print(f"{what}: {method}", soft_wrap=True, highlight=False)
            training.customize(folder, method=method.lower(), out=run, **options)
        prompts = [*captions, *UNSEEN]
        found = comparing.compare(
            runs,
            out,
            prompts,
            ("judge", "vendi", "drift") if compare else ("judge", "vendi"),
            folder,
            NUM,
            seed,
            dtype=hardware.dtype,
            device=hardware.device,
            on_column=lambda method: console.print(f"Drawing and judging {len(prompts)} prompts: {method}"),
        )
    print_table(console, found["scores"])
    scores, grid = (out / name for name in comparing.RESULTS)
    for line in (
        f"Done in {time.perf_counter() - start:.0f} s. The adapter is in {out / 'adapter'}, these numbers in {scores}.",
        f"Look first at {grid}: the images it learnt from, and below them what the base and the adapter draw.",
        f"Then draw the teapot yourself:  {drawing_command(out, adapter_info(out))}",
        f"And see what its atoms do:      {command_line('inspect', out)}",
    ):
        console.print(line, soft_wrap=True, highlight=False)
