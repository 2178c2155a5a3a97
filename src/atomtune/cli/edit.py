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
    metrics: str | None = None,
    clip_model: str | None = None,
    dino_model: str | None = None,
    base: Base = DEFAULT_BASE,
) -> None:
    """Edit one image: learn it, then draw a new prompt with different densities and numbers of atoms.

    Each of these settings, a rung of the ladder, is scored by alignment to the prompt and fidelity to the image. The
    best trade-off is marked in OUT/edit.png, and its dials are in OUT/preset.json for `atomtune generate OUT --preset`.
    Where no rung has at least 0.35 in both scores, which hardly any unrelated image has, none is the best and no preset
    is written. The same command with another --prompt does not train again. On another base than moji
    there are scores with --metrics clip or clip,dino: in alignment 0 is the image as it was and 1 what the base draws;
    in fidelity 0 is what the base draws and 1 the image.

    Args:
        image: The image to edit.
        prompt: What the image should become.
        out: Folder for the run, the images and the preset.
        source_prompt: What the image shows now.
        remove: Addresses of atoms or layers, such as "L17[137],L3[0:40],L5". The best rung (or all atoms, if none is
            best) is drawn once more without these atoms.
        num: Images of each rung.
        seed: Seed of the training and of the first image.
        steps: Training steps (by default those of the recipe for the base).
        epochs: How many times the image is seen in training, instead of --steps.
        metrics: clip, or clip,dino: score with these models.
        clip_model: CLIP, a folder or a hub name (by default openai/clip-vit-large-patch14).
        dino_model: DINOv2, a folder or a hub name (by default facebook/dinov2-base).
    """
    from atomtune import addresses
    from atomtune.editing import edit
    from atomtune.shell import command_line

    given: dict[str, Any] = {"steps": steps, "epochs": epochs, "clip": clip_model, "dino": dino_model}
    given["metrics"] = [name.strip() for name in metrics.split(",")] if metrics else None
    given = {name: value for name, value in given.items() if value is not None}
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
        **given,
    )
    for rung in result["rungs"]:
        line = f"{rung['label']:>20}"
        if rung["alignment"] is not None:
            line += f"  prompt {rung['alignment']:.3f}  image {rung['fidelity']:.3f}"
        print(line + ("   best" if rung["label"] == result["best"] else ""))
    print(f"Look at {out / 'edit.png'}. {_outcome(result)}")
    if result["best"]:
        preset = ["--preset", result["preset"]] if result["preset"] else []
        print(f"Draw more: {command_line('generate', out, '--prompt', prompt, *preset, '--num', 4)}")


def _outcome(result: dict[str, Any]) -> str:
    """What the edit came to, in a sentence or two."""
    from atomtune.editing import ADVICE, FLOOR

    if result["rungs"][0]["alignment"] is None:
        return (
            "This base has no judge: choose a rung by eye (its dials are in edit.json), or --metrics clip,dino scores."
        )
    if not result["best"]:
        return f"No rung kept both the image and the prompt (a score of {FLOOR:g} in each). What can help: {ADVICE}"
    if not result["preset"]:
        return "The best rung is the adapter as it is, with all atoms: it needs no preset."
    return f"The best rung is {result['best']}, and its dials are in {result['preset']}."
