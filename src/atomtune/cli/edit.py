"""`atomtune edit`: learn one image, then draw a new prompt with fewer and fewer atoms."""

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from atomtune.cli.hardware import DEFAULT_BASE, Base

Text = Annotated[str, Parameter(allow_leading_hyphen=True)]


def edit(
    image: Path,
    /,
    *,
    prompt: Text,
    out: Path,
    source_prompt: Text | None = None,
    remove: str | None = None,
    num: int = 2,
    seed: int = 0,
    steps: int | None = None,
    epochs: int | None = None,
    base: Base = DEFAULT_BASE,
) -> None:
    """Edit one image: learn it, then draw a new prompt with different densities and numbers of atoms.

    Each of these settings, a rung of the ladder, is scored by alignment to the prompt and fidelity to the image. The
    best trade-off is marked in OUT/edit.png, and its dials are in OUT/preset.json for `atomtune generate OUT --preset`.
    The same command with another --prompt does not train again. With another base than moji there are no scores.

    Args:
        image: The image to edit.
        prompt: What the image should become.
        out: Folder for the run, the images and the preset.
        source_prompt: What the image shows now.
        remove: Addresses of atoms or layers, such as "L17[137],L3[0:40],L5". The best rung is drawn once more without
            these atoms.
        num: Images of each rung.
        seed: Seed of the training and of the first image.
        steps: Training steps (by default those of the recipe for the base).
        epochs: How many times the image is seen in training, instead of --steps.
    """
    from atomtune import addresses
    from atomtune.editing import edit
    from atomtune.metrics import load_judge

    length: dict[str, Any] = {"steps": steps, "epochs": epochs}
    length = {name: value for name, value in length.items() if value is not None}
    removed = addresses.split(remove or "")
    result = edit(
        image,
        prompt,
        out,
        source_prompt,
        removed,
        num,
        seed,
        dtype=base.dtype,
        device=base.device,
        base=base.name(),
        **length,
    )
    for rung in result["rungs"]:
        line = f"{rung['label']:>20}"
        if rung["alignment"] is not None:
            line += f"  prompt {rung['alignment']:.3f}  image {rung['fidelity']:.3f}"
        print(line + ("   best" if rung["label"] == result["best"] else ""))
    if result["best"]:
        print(load_judge())
    print(f"Look at {out / 'edit.png'}" + (f"; the best rung is {out / 'preset.json'}" if result["best"] else ""))
