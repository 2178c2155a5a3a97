"""`atomtune generate`: draw pictures with an adapter, or with the base alone."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from atomtune.errors import UserError
from atomtune.files import refuse_output


def generate(
    adapter: Annotated[Path | None, Parameter(name="RUN-OR-ADAPTER")] = None,
    /,
    *,
    prompt: Annotated[list[str] | None, Parameter(negative=())] = None,
    prompts_file: Path | None = None,
    num: int = 1,
    seed: int = 0,
    density: float | None = None,
    scale: float = 1.0,
    preset: Path | None = None,
    steps: int | None = None,
    guidance_scale: float | None = None,
    resolution: int | None = None,
    batch_size: int = 8,
    base: str | None = None,
    dtype: Literal["float32", "float16", "bfloat16"] = "float32",
    out: Path | None = None,
) -> None:
    """Draw pictures, with or without an adapter.

    Every picture is a PNG that holds its settings; grid.png shows them all, a row for each prompt.

    Args:
        adapter: Folder of a run or of an adapter. Without one the base alone draws.
        prompt: What to draw. Give it again for another.
        prompts_file: Text file with one prompt a line.
        num: Pictures of each prompt.
        seed: Seed of the first picture of each prompt; the next has seed + 1. The noise depends on it alone.
        density: Share of the atoms a token may use, in (0, 1], in place of the density of training.
        scale: Strength of the adapter: 0 is the base, 1 the adapter as trained.
        preset: JSON of `AtomBoard.save_preset`: gains, dropped atoms, densities, strength by timestep.
        steps: Denoising steps (the base's own number by default).
        guidance_scale: Strength of classifier-free guidance (the base's own by default).
        resolution: Height and width in pixels (the base's own by default).
        batch_size: Pictures drawn at once.
        base: Base model, when not the one the adapter names: "moji", a folder, or a hub name.
        dtype: Precision of the weights.
        out: Folder for the pictures ("generated" in the run by default).
    """
    prompts = [*(prompt or []), *(read_prompts(prompts_file) if prompts_file else [])]
    if not prompts:
        raise UserError("there is nothing to draw: give --prompt, or --prompts-file with one prompt a line.")
    for flag, given in (("--density", density), ("--preset", preset)):
        if given is not None and adapter is None:
            raise UserError(f"{flag} needs an adapter: name a run or an adapter folder first.")

    import torch
    from accelerate import PartialState

    from atomtune import pipelines, sampling

    out = out or (adapter or Path("runs")) / "generated"
    refuse_output(out)
    sampling.refuse_other_image(out / "grid.png")

    info = pipelines.adapter_info(adapter) if adapter else {}
    base = base or str(info.get("base_model_name_or_path", pipelines.MOJI))
    pipe = pipelines.load_base(base, getattr(torch, dtype)).to(PartialState().device)
    if adapter:
        model = pipelines.load_adapter(pipe, adapter)
        _turn(model, density, scale, preset)
    drawings = sampling.generate(pipe, prompts, num, seed, steps, guidance_scale, batch_size, resolution)
    made_by: dict[str, object] = {"base": base}
    if adapter:
        made_by |= {"adapter": str(adapter), "density": density, "scale": scale, "preset": preset and str(preset)}
    for drawing in drawings:
        drawing.settings |= made_by

    sampling.save_images(drawings, out)
    rows = [[drawing.image for drawing in drawings[i * num : (i + 1) * num]] for i in range(len(prompts))]
    seeds = [f"seed {s}" for s in range(seed, seed + num)]
    sampling.save_png(
        sampling.grid(rows, prompts, seeds), out / "grid.png", made_by | {"prompts": prompts, "seed": seed}
    )
    print(f"{len(drawings)} pictures and grid.png are in {out}")


def read_prompts(file: Path) -> list[str]:
    """One prompt a line. Raises `UserError`."""
    try:
        return [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise UserError(f"the prompts file {file} could not be read ({reason}): expected one prompt a line.") from error


def _turn(model, density: float | None, scale: float, preset: Path | None) -> None:
    """Set the dials of the adapter, for sampling only; a density that is given goes before the preset's."""
    from atomtune import pipelines

    kind = model.peft_config["default"].peft_type.value
    for flag, given in (("--density", density), ("--preset", preset)):
        if given is not None and kind != "ATOMS":
            raise UserError(f"{flag} belongs to atoms; this adapter is {kind}: leave it out, or use --scale.")
    if kind == "ATOMS":
        from atomtune.atoms import board

        if preset is not None:
            board(model).apply(preset)
        if density is not None:
            board(model).density = density
    if scale != 1.0:
        if kind == "OFT":
            raise UserError(
                "--scale does not apply to OFT, which rotates weights: use 1, or an adapter of another method."
            )
        pipelines.set_scale(model, scale)
