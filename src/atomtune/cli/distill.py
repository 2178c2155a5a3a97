"""`atomtune distill`: convert a LoRA into atoms."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from atomtune.cli.hardware import OWN, Base
from atomtune.errors import UserError, check_seed
from atomtune.files import refuse_output


def distill(
    lora: Annotated[Path, Parameter(name="LORA")],
    /,
    *,
    out: Path,
    atoms: int = 128,
    density: float = 0.05,
    prompt: Annotated[list[str] | None, Parameter(negative=(), allow_leading_hyphen=True)] = None,
    prompts_file: Path | None = None,
    num: int = 2,
    steps: int = 500,
    tokens: int = 8192,
    seed: int = 0,
    sampling_steps: int | None = None,
    resolution: int | None = None,
    base: Base = OWN,
) -> None:
    """Learn atoms that add what a LoRA adds, so that it can be inspected, steered, pruned and merged.

    Images of the prompts are drawn with the LoRA; the atoms of each layer are fitted to what the LoRA adds there.

    Args:
        lora: A PEFT folder, a run of `customize --method lora`, or a .safetensors file as diffusers or kohya's scripts
            write it.
        out: Folder for the adapter of atoms.
        atoms: Atoms in each layer that the LoRA adapts.
        density: Share of them that a token may use. 1: the LoRA's own components, exactly.
        prompt: What the LoRA was made for; may be given several times ("a TOKEN CLASS" by default, where the adapter
            names them).
        prompts_file: Text file with one prompt a line.
        num: Images of each prompt.
        steps: Optimizer steps for each layer.
        tokens: Tokens that are kept of what each layer sees; a fifth of them only measure.
        seed: Seed of the images and of the fit.
        sampling_steps: Denoising steps (the base's own number by default).
        resolution: Height and width in pixels (the base's own by default).
    """
    for flag, value in (("--atoms", atoms), ("--num", num), ("--steps", steps), ("--tokens", tokens)):
        if value < 1:
            raise UserError(f"{flag} must be at least 1, got {value}.")
    from rich.console import Console
    from rich.progress import track

    from atomtune import bases
    from atomtune.cli.generate import read_prompts
    from atomtune.cli.prune import refuse_taken
    from atomtune.lora import distillation, loading
    from atomtune.method.coding import atoms_per_token
    from atomtune.storage import folders

    atoms_per_token(atoms, density)
    check_seed(seed, num)
    refuse_output(out, lora)
    refuse_taken(out)
    info = None
    if file := distillation.diffusers_file(lora):
        loading.read(file)  # what is wrong with it is said before a base is opened
    else:
        info = folders.adapter_info(lora)
        info.refuse_other_than("LORA", "distill takes a LoRA")
    known = info.trained_for if info else {}
    token, class_name = known.get("token"), known.get("class_name")
    wanted = (prompt or []) + (read_prompts(prompts_file) if prompts_file else [])
    if not wanted and token and class_name:
        wanted = [f"a {token} {class_name}"]
    if not wanted:
        raise UserError("there is nothing to distill on: give --prompt with what the LoRA was made for.")
    pipe = base.open(info)
    model = distillation.load_lora(pipe, lora)
    layers = distillation.distill(
        pipe,
        model,
        wanted,
        num_atoms=atoms,
        density=density,
        steps=steps,
        tokens=tokens,
        num=num,
        seed=seed,
        sampling_steps=sampling_steps,
        resolution=resolution,
        progress=lambda layers: track(layers, "fitting layer by layer", console=Console(stderr=True), transient=True),
    )
    folder = folders.save_adapter(bases.denoiser(pipe), out / "adapter", base=base.name(info), **known)
    whole = sum(layer.weight for layer in layers)
    explained = sum(layer.share * layer.weight for layer in layers) / whole
    worst = min(layers, key=lambda layer: layer.share)
    print(
        f"{explained:.1%} of what the LoRA adds is explained, over {len(layers)} layers (least: {worst.share:.1%} in "
        f"{worst.name}).\nThe adapter is in {folder}"
    )
