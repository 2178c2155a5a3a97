"""`atomtune distill`: convert a LoRA into atoms."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from atomtune.cli.hardware import DEFAULT_BASE, Base
from atomtune.errors import UserError, check_seed, counted
from atomtune.files import read_prompts, refuse_output
from atomtune.sizes import Resolution


def distill(
    lora: Annotated[Path, Parameter(name="LORA")],
    /,
    *,
    out: Path,
    num_atoms: int = 128,
    density: float = 0.05,
    prompt: Annotated[list[str] | None, Parameter(negative=(), allow_leading_hyphen=True)] = None,
    prompts_file: Path | None = None,
    num: int = 2,
    steps: int = 500,
    tokens: int = 8192,
    seed: int = 0,
    sampling_steps: int | None = None,
    resolution: Resolution | None = None,
    base: Base = DEFAULT_BASE,
) -> None:
    """Convert a LoRA into atoms, so that it can be inspected, steered, pruned and merged.

    Images of the prompts are drawn with the LoRA; the atoms of each layer are fitted to what the LoRA adds there.

    Args:
        lora: A PEFT folder, a run of `customize --method lora`, or a .safetensors file as diffusers or kohya's scripts
            write it.
        out: Folder for the run: the adapter of atoms, its settings and its numbers.
        num_atoms: Number of atoms in each layer that the LoRA adapts.
        density: Share of these atoms that one token may use. With 1 the atoms are the LoRA's own components,
            which add exactly what the LoRA adds.
        prompt: A prompt of the kind that the LoRA was trained for; may be repeated. By default three with the
            TOKEN and CLASS that the adapter names.
        prompts_file: Text file with one prompt a line.
        num: Images of each prompt.
        steps: Training steps for each layer.
        tokens: Number of input tokens that are kept of each layer: four fifths to train on, one fifth to measure on.
        seed: Seed of the images and of the fit.
        sampling_steps: Denoising steps (the base's own number by default).
        resolution: Size in pixels: 1024 for a square, 1024x768 for WIDTHxHEIGHT (the base's own by default).
    """
    for flag, value in (("--num-atoms", num_atoms), ("--num", num), ("--steps", steps), ("--tokens", tokens)):
        if value < 1:
            raise UserError(f"{flag} must be at least 1, got {value}.")
    from rich.console import Console
    from rich.progress import Progress

    from atomtune import bases
    from atomtune.cli.generate import drawing_command
    from atomtune.lora import distillation, loading
    from atomtune.method.coding import atoms_per_token
    from atomtune.steering import board
    from atomtune.storage import folders, reading, runs

    atoms_per_token(num_atoms, density)
    check_seed(seed, num)
    refuse_output(out, lora)
    runs.refuse_taken(out)
    info = None
    if file := distillation.diffusers_file(lora):
        loading.read(file)  # a file that cannot be used is refused before a base is opened
    else:
        info = reading.adapter_info(lora)
        info.refuse_other_than("LORA", "distill takes a LoRA")
    known = info.trained_for if info else {}
    prompts = (prompt or []) + (read_prompts(prompts_file) if prompts_file else [])
    if not prompts and info:
        prompts = info.prompts(3)
    if not prompts:
        raise UserError("there are no prompts to draw with the LoRA: give --prompt, such as 'a TOKEN CLASS'.")
    pipe = base.open(info)
    model = distillation.load_lora(pipe, lora)
    with Progress(console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("fitting layer by layer", total=None)
        layers = distillation.distill(
            pipe,
            model,
            prompts,
            num_atoms=num_atoms,
            density=density,
            steps=steps,
            tokens=tokens,
            num=num,
            seed=seed,
            sampling_steps=sampling_steps,
            resolution=resolution,
            on_progress=lambda done, total: bars.update(task, completed=done, total=total),
        )
    whole = sum(layer.weight for layer in layers)
    explained = sum(layer.share * layer.weight for layer in layers) / whole
    worst = min(layers, key=lambda layer: layer.share)
    options = {"lora": lora, "out": out, "num_atoms": num_atoms, "density": density, "prompt": prompts, "num": num}
    options |= {"steps": steps, "tokens": tokens, "seed": seed, "sampling_steps": sampling_steps}
    options |= {"resolution": resolution and resolution.plain, "base": base.name(info)}
    atoms = sum(dictionary.num_atoms for dictionary in board(pipe).dictionaries)
    numbers = {"base": base.name(info), "method": "atoms", **known, "atoms": atoms, "layers": len(layers)}
    numbers |= {"explained": round(explained, 4), "explained_lowest_layer": round(worst.share, 4)}
    training = runs.training_of(lora)
    runs.write_run(
        out,
        lambda folder: folders.save_adapter(bases.denoiser(pipe), folder, base=base.name(info), **known),
        "distill",
        options,
        numbers | bases.precision_and_device(pipe),
        training and training | {"method": "atoms"},
    )
    print(
        f"The atoms add {explained:.1%} of what the LoRA adds, over {counted(len(layers), 'layer')} (least in "
        f"{worst.name}: {worst.share:.1%}).\nThe adapter is in {out}. Draw with it: "
        f"{drawing_command(out, reading.adapter_info(out))}"
    )
