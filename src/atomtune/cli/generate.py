"""`atomtune generate`: draw images with an adapter, or with the base alone."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from atomtune.cli.hardware import DEFAULT_BASE, Base
from atomtune.errors import UserError, check_seed, counted
from atomtune.files import read_prompts, refuse_output, remove_leftovers
from atomtune.shell import command_line
from atomtune.sizes import Resolution

if TYPE_CHECKING:
    from atomtune.storage.reading import AdapterInfo


def generate(
    adapter: Annotated[Path | None, Parameter(name="RUN-OR-ADAPTER")] = None,
    /,
    *,
    prompt: Annotated[list[str] | None, Parameter(negative=(), allow_leading_hyphen=True)] = None,
    prompts_file: Path | None = None,
    negative_prompt: Annotated[str | None, Parameter(allow_leading_hyphen=True)] = None,
    num: int = 1,
    seed: int = 0,
    density: float | None = None,
    floor: float | None = None,
    scale: float = 1.0,
    preset: Path | None = None,
    steps: int | None = None,
    guidance_scale: float | None = None,
    resolution: Resolution | None = None,
    batch_size: int = 8,
    out: Path | None = None,
    quantize: Literal["int8", "fp8", "nf4"] | None = None,
    offload: Literal["model", "sequential", "group"] | None = None,
    base: Base = DEFAULT_BASE,
) -> None:
    """Draw images, with or without an adapter.

    Every image is a PNG that holds its settings, on disk as soon as it is drawn; a grid shows them all, a row for
    each prompt. Other settings give other file names, so no earlier image is overwritten. After an interruption the
    same command draws the missing images.

    Args:
        adapter: Folder of a run or of an adapter. Without one the base alone draws.
        prompt: What to draw; may be repeated.
        prompts_file: Text file with one prompt a line.
        negative_prompt: What no image should show, for all prompts. Works only with guidance.
        num: Images of each prompt.
        seed: Seed of the first image of each prompt; the next image has seed + 1. The noise depends on the seed alone.
        density: Share of the atoms that one token may use, in (0, 1] (by default the density in training).
        floor: From 0 to 1: an atom acts only where it is stronger than this share of the time on other prompts, so that
            what is not the subject stays as it was. Adapters trained with --preserve have it (0: no floor).
        scale: Strength of the adapter: 0 is the base, 1 the adapter as trained.
        preset: JSON of `AtomBoard.save_preset`: gains, dropped atoms, densities, floors, strength by timestep.
        steps: Denoising steps (the base's own number by default).
        guidance_scale: Strength of classifier-free guidance (the base's own by default).
        resolution: Size in pixels: 1024 for a square, 1024x768 for WIDTHxHEIGHT (the base's own by default).
        batch_size: Images drawn in one batch.
        out: Folder for the images ("generated" in the run by default).
        quantize: Keep the linear layers of the base in so few bits, by torchao (int8, fp8) or bitsandbytes (nf4, which
            needs a CUDA or XPU card): less memory. Needs the extra `quantize`.
        offload: Have parts of the base on the accelerator only while they work, as diffusers does: whole models, least
            layers at a time but slowest (sequential), or layers in groups.
    """
    prompts = [*(prompt or []), *(read_prompts(prompts_file) if prompts_file else [])]
    if not prompts:
        raise UserError("there is nothing to draw: give --prompt, or --prompts-file with one prompt a line.")
    check_seed(seed, num)
    for flag, given in (("--density", density), ("--floor", floor), ("--preset", preset)):
        if given is not None and adapter is None:
            raise UserError(f"{flag} needs an adapter: name a run or an adapter folder first.")

    from atomtune import bases, sampling
    from atomtune.devices import pick_device
    from atomtune.files import file_hash
    from atomtune.storage import folders, reading

    device = pick_device(base.device)
    bases.refuse_offload(offload, device)
    out = out or (adapter or Path("runs")) / "generated"
    refuse_output(out)
    remove_leftovers(out)
    info = reading.adapter_info(adapter) if adapter else None
    if info:
        _refuse_other_dials(info, density, floor, scale, preset)
    pipe = base.open(info, quantize, offloaded=offload is not None)
    made_by = sampling.made_by(pipe, adapter) | ({"quantize": quantize} if quantize else {})
    if adapter:
        model = folders.load_adapter(pipe, adapter)
        _set_dials(model, density, floor, scale, preset)
        made_by |= {"density": density, "floor": floor, "scale": scale, "preset": preset and str(preset)}
        made_by |= {"preset_hash": file_hash(preset)[:16]} if preset else {}
    if offload is not None:  # after the adapter, whose layers move with those of the base
        bases.offload(pipe, device, offload)
    planned = sampling.plan(pipe, prompts, num, seed, steps, guidance_scale, resolution, negative_prompt)
    planned = [settings | made_by for settings in planned]
    files = sampling.planned_files(planned, out)
    try:
        drawn = sampling.draw_missing(pipe, planned, out, batch_size)
    except BaseException:
        if there := sum(file.is_file() for file in files):
            print(f"{there} of {len(files)} images are in {out}: the same command draws the others.", file=sys.stderr)
        raise

    images = [sampling.read_image(file) for file in files]
    rows = [images[i * num : (i + 1) * num] for i in range(len(prompts))]
    seeds = [f"seed {s}" for s in range(seed, seed + num)]
    settings = planned[0] | {"prompt": prompts, "seed": seed, "num": num}
    grid = out / f"grid-{sampling.digest(settings)}.png"
    sampling.save_png(sampling.grid(rows, prompts, seeds), grid, settings)
    before = len(files) - drawn
    already = f"; {before} of them had been drawn before with the same settings" if before else ""
    print(f"{counted(len(files), 'image')} in {out}{already}. All on one sheet: {grid}")


def drawing_command(out: Path, info: "AdapterInfo") -> str:
    """A command that draws what the adapter of a run learnt, each of its subjects."""
    prompts = [info.prompts_of(subject, 3)[-1] for subject in info.subjects] or ["..."]
    return command_line("generate", out, *(word for prompt in prompts for word in ("--prompt", prompt)), "--num", 4)


def _refuse_other_dials(
    info: "AdapterInfo", density: float | None, floor: float | None, scale: float, preset: Path | None
) -> None:
    """Raise `UserError` for dials that the adapter does not have."""
    from atomtune.method.coding import atoms_per_token
    from atomtune.method.floor import check_share

    for flag, given in (("--density", density), ("--floor", floor), ("--preset", preset)):
        if given is not None:
            info.refuse_other_than("ATOMS", f"{flag} belongs to atoms, so leave it out, or use --scale")
    if density is not None:
        atoms_per_token(1, density)  # in (0, 1]
    if floor is not None:
        check_share(floor)
    if scale != 1.0 and info.kind == "OFT":
        raise UserError("--scale does not apply to OFT, which rotates weights: use 1, or an adapter of another method.")


def _set_dials(model, density: float | None, floor: float | None, scale: float, preset: Path | None) -> None:
    """Set the dials of the adapter, for sampling only. `density` and `floor` win over those in the preset."""
    from atomtune.steering import board
    from atomtune.storage import folders

    if preset is not None:
        board(model).apply(preset)
    if density is not None:
        board(model).density = density
    if floor is not None:
        board(model).floor = floor
    if scale != 1.0:
        folders.set_scale(model, scale)
