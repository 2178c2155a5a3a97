"""`atomtune compare`: several adapters, and the base, on the same prompts from the same noise, with their scores."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from atomtune.cli.hardware import DEFAULT_BASE, Base
from atomtune.errors import UserError
from atomtune.files import read_prompts
from atomtune.sizes import Resolution

if TYPE_CHECKING:
    from rich.console import Console


def compare(
    *adapters: Annotated[Path, Parameter(name="RUN-OR-ADAPTER")],
    metrics: str | None = None,
    prompt: Annotated[list[str] | None, Parameter(negative=(), allow_leading_hyphen=True)] = None,
    prompts_file: Path | None = None,
    images: Path | None = None,
    num: int = 4,
    seed: int = 0,
    steps: int | None = None,
    guidance_scale: float | None = None,
    resolution: Resolution | None = None,
    out: Path = Path("runs/compare"),
    clip_model: str | None = None,
    dino_model: str | None = None,
    base: Base = DEFAULT_BASE,
) -> None:
    """Score adapters side by side: the same prompts, the same noise, and the base beside them.

    Prints a table with a column for each adapter, and writes it to OUT/scores.json and the images to OUT/grid.png. An
    adapter may be of any method and size: its parameters are in the table. Drift is how much it changes prompts that
    have nothing to do with its subject.

    Args:
        adapters: Folders of runs or adapters, of one base.
        metrics: Names with commas between them: judge, clip, dino, image_reward, vendi, drift, pres, div. By default on
            moji judge,vendi,drift,pres,div, elsewhere drift. clip and dino load a model; vendi, pres and div need one.
        prompt: What to draw; may be repeated (by default up to eight prompts with the subject of the first
            adapter).
        prompts_file: Text file with one prompt a line.
        images: Folder of images of the subject, for fidelity (by default those that the first run was trained on;
            none: no fidelity).
        num: Images of each prompt.
        seed: Seed of the first image of each prompt.
        steps: Denoising steps (the base's own number by default).
        guidance_scale: Strength of classifier-free guidance (the base's own by default).
        resolution: Size in pixels: 1024 for a square, 1024x768 for WIDTHxHEIGHT (the base's own by default).
        out: Folder for the table and the images.
        clip_model: CLIP, a folder or a hub name (by default openai/clip-vit-large-patch14).
        dino_model: DINOv2, a folder or a hub name (by default facebook/dinov2-base).
    """
    from rich.console import Console

    from atomtune import comparing

    if num < 1:
        raise UserError(f"--num must be at least 1, got {num}.")
    console = Console()
    given = {"clip": clip_model, "dino": dino_model}
    found = comparing.compare(
        adapters,
        out,
        [*(prompt or []), *(read_prompts(prompts_file) if prompts_file else [])],
        [name.strip() for name in metrics.split(",")] if metrics else None,
        images,
        num,
        seed,
        steps,
        guidance_scale,
        resolution,
        base.base,
        base.dtype,
        base.device,
        on_column=lambda label: console.print(f"Drawing and scoring: {label}", highlight=False),
        **{name: model for name, model in given.items() if model is not None},
    )
    print_table(console, found["scores"])
    scores, grid = (out / name for name in comparing.RESULTS)
    console.print(f"Look at {grid}. These numbers are in {scores}.", soft_wrap=True, highlight=False)


def print_table(console: "Console", scores: Mapping[str, Any]) -> None:
    """The scores of `compare`, a column for each label."""
    from rich.table import Column, Table

    from atomtune.metrics.scores import table

    printed = Table("", *(Column(heading, justify="right") for heading in scores))
    for label, values in table(scores):
        printed.add_row(label, *values)
    console.print(printed)
