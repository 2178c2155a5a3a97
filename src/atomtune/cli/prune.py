"""`atomtune prune`: keep the few atoms that matter and throw the others away, for good."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from atomtune.cli.hardware import DEFAULT_BASE, Base
from atomtune.errors import UserError
from atomtune.files import refuse_output

if TYPE_CHECKING:
    from atomtune.storage.folders import AdapterInfo


def prune(
    adapter: Annotated[Path, Parameter(name="RUN-OR-ADAPTER")],
    /,
    *,
    out: Path,
    keep: int | None = None,
    keep_per_layer: int | None = None,
    by: Literal["energy", "gradient"] | None = None,
    finetune_steps: int = 0,
    learning_rate: float | None = None,
    base: Base = DEFAULT_BASE,
) -> None:
    """Keep the atoms that matter most and throw the others away.

    The small adapter in OUT/adapter draws what the full one draws with the other atoms dropped; addresses such as
    L17[137] stay true. With --finetune-steps it is then trained on, on the run's own images with the run's settings;
    what it was before that stays in OUT/pruned.

    Args:
        adapter: Folder of a run or of an adapter.
        out: Folder for the small adapter.
        keep: Atoms to keep over the whole model.
        keep_per_layer: Atoms to keep in each layer, instead.
        by: What ranks them. energy: mean |s_m|·‖d_m‖ as it was measured in training, read from the file. gradient: how
            much the loss on the run's images hangs on each atom; it keeps more of the likeness, and needs the run.
            By default the gradient where the run's images are at hand.
        finetune_steps: Training steps for what is left (needs a run, with its config.yaml and its images).
        learning_rate: Of those steps (the run's own by default).
    """
    if (keep is None) == (keep_per_layer is None):
        raise UserError(
            "give one of --keep and --keep-per-layer: the number of atoms over the whole model, or in each layer."
        )
    if finetune_steps < 0:
        raise UserError(f"finetune_steps must be 0 or more, got {finetune_steps}.")
    from atomtune import bases, steering
    from atomtune.storage import folders

    info = folders.adapter_info(adapter)
    info.refuse_other_than("ATOMS", "only atoms can be pruned")
    run = _run_of(adapter)
    if run is None and (finetune_steps or by == "gradient"):
        wanting = "--finetune-steps" if finetune_steps else "--by gradient"
        raise UserError(
            f"{wanting} needs the run that {adapter} came from: there is no config.yaml of this version beside it."
        )
    by = by or ("gradient" if run is not None and Path(run["images"]).exists() else "energy")
    refuse_output(out, adapter, *([run["images"]] if run else []))
    refuse_taken(out)
    name, pipe = base.name(info), base.open(info)
    model = folders.load_adapter(pipe, adapter)
    board = steering.board(model)
    scores = board.mean_energy() if by == "energy" else _gradients(board, pipe, run)
    board.keep(keep or keep_per_layer or 0, scores, per_layer=keep is None)
    result = model.prune()  # pyright: ignore[reportCallIssue]  AtomModel's
    pruned = folders.save_adapter(
        model,
        out / ("pruned" if finetune_steps else "adapter"),
        base=name,
        **info.trained_for,
        card=_card(info, result, f"{by}, in {{dtype}} on {{device}}".format(**bases.precision_and_device(pipe))),
    )
    if finetune_steps:
        from atomtune.training import configure, customize

        mine = {"init_adapter": pruned, "steps": finetune_steps, "out": out, "overwrite": False, "base": name}
        mine |= base.for_training() | ({} if learning_rate is None else {"learning_rate": learning_rate})
        del pipe, model, board  # the run opens a base of its own
        customize(configure(**(run or {}) | mine))
    size = (out / "adapter" / "adapter_model.safetensors").stat().st_size
    print(
        f"{result.atoms} of {result.atoms_before:,} atoms, in {result.layers} layers: {size / 1e6:.2f} MB\n"
        f"(C_i + C_o)·K = {result.numbers:,} numbers; the paper's C_i·M + ρ·C_o·M = {result.numbers_in_the_paper:,}\n"
        f"The adapter is in {out / 'adapter'}"
    )


def _gradients(board: Any, pipe: Any, run: Any) -> list[Any]:
    """Importance by gradient on the run's images, one in a batch as large models need."""
    import torch

    from atomtune.analysis.examples import training_examples
    from atomtune.analysis.importance import importance
    from atomtune.training import configure

    config = configure(**run)
    examples = training_examples(pipe, config.images, config.instance_prompt, resolution=config.resolution)
    each = [importance(board, "gradient", loss=one.losses) for one in examples.one_by_one()]
    return [torch.stack(scores).mean(0) for scores in zip(*each)]


def _run_of(adapter: Path) -> dict[str, Any] | None:
    """The settings of the run that an adapter came from, when they are beside it."""
    from atomtune.training import load_recipe

    for folder in (adapter, adapter.parent):
        if (folder / "config.yaml").is_file() and "images" in (run := load_recipe(folder / "config.yaml")):
            return run
    return None


def refuse_taken(out: Path) -> None:
    """Raise `UserError` where there is a run or an adapter."""
    from atomtune.storage.metadata import CONFIG_FILE, WEIGHTS_FILE

    places = [folder + name for folder in ("", "adapter/", "pruned/") for name in (CONFIG_FILE, WEIGHTS_FILE)]
    if any((out / name).exists() for name in ("config.yaml", *places)):
        raise UserError(f"{out} holds an adapter already: choose another folder.")


def _card(info: "AdapterInfo", result: Any, by: str) -> str | None:
    """The adapter's own card, and what was taken away."""
    from atomtune.storage.cards import read_card

    if (card := read_card(info.folder)) is None:
        return None
    line = f"Pruned to {result.atoms} of {result.atoms_before:,} atoms, by {by}."
    return f"{card}\n\n{line}\n"
