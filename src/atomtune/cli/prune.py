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

    The small adapter in OUT/adapter draws exactly what the full adapter draws when the other atoms are dropped.
    Addresses such as L17[137] stay the same. With --finetune-steps the small adapter is then trained further, on the
    images and with the settings of its run; the adapter from before this training stays in OUT/pruned.

    Args:
        adapter: Folder of a run or of an adapter.
        out: Folder for the small adapter.
        keep: Atoms to keep over the whole model.
        keep_per_layer: Atoms to keep in each layer, instead of --keep.
        by: How atoms are ranked. energy: mean |s_m|·‖d_m‖, measured in training and read from the file. gradient: how
            much the loss on the run's images depends on each atom; it keeps more of the likeness, and needs the run
            and its images. By default gradient if they are there, else energy.
        finetune_steps: Further training steps of the small adapter (needs a run, with its config.yaml and its images).
        learning_rate: Learning rate of the further training (by default that of the run).
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
        flag = "--finetune-steps" if finetune_steps else "--by gradient"
        raise UserError(
            f"{flag} needs the run that {adapter} came from: there is no config.yaml of this version beside it."
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

        overrides = {"init_adapter": pruned, "steps": finetune_steps, "out": out, "overwrite": False, "base": name}
        overrides |= base.for_training() | ({} if learning_rate is None else {"learning_rate": learning_rate})
        del pipe, model, board  # the run opens a base of its own
        customize(configure(**(run or {}) | overrides))
    size = (out / "adapter" / "adapter_model.safetensors").stat().st_size
    print(
        f"{result.atoms} of {result.atoms_before:,} atoms, in {result.layers} layers: {size / 1e6:.2f} MB\n"
        f"(C_i + C_o)·K = {result.numbers:,} numbers; the paper's C_i·M + ρ·C_o·M = {result.numbers_in_the_paper:,}\n"
        f"The adapter is in {out / 'adapter'}"
    )


def _gradients(board: Any, pipe: Any, run: Any) -> list[Any]:
    """Importance by gradient on the run's images, one image in a batch, so that large models fit into memory."""
    import torch

    from atomtune.analysis.examples import training_examples
    from atomtune.analysis.importance import importance
    from atomtune.training import configure

    config = configure(**run)
    examples = training_examples(pipe, config.images, config.instance_prompt, resolution=config.resolution)
    each = [importance(board, "gradient", loss=one.losses) for one in examples.one_by_one()]
    return [torch.stack(scores).mean(0) for scores in zip(*each)]


def _run_of(adapter: Path) -> dict[str, Any] | None:
    """The settings of the run that an adapter came from, if its config.yaml is beside the adapter."""
    from atomtune.training import load_recipe

    for folder in (adapter, adapter.parent):
        if (folder / "config.yaml").is_file() and "images" in (run := load_recipe(folder / "config.yaml")):
            return run
    return None


def refuse_taken(out: Path) -> None:
    """Raise `UserError` if there is a run or an adapter in `out`."""
    from atomtune.storage.metadata import CONFIG_FILE, WEIGHTS_FILE

    places = [folder + name for folder in ("", "adapter/", "pruned/") for name in (CONFIG_FILE, WEIGHTS_FILE)]
    if any((out / name).exists() for name in ("config.yaml", *places)):
        raise UserError(f"{out} holds an adapter already: choose another folder.")


def _card(info: "AdapterInfo", result: Any, by: str) -> str | None:
    """The card that the adapter had, and a line about the pruning."""
    from atomtune.storage.cards import read_card

    if (card := read_card(info.folder)) is None:
        return None
    line = f"Pruned to {result.atoms} of {result.atoms_before:,} atoms, by {by}."
    return f"{card}\n\n{line}\n"
