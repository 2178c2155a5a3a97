"""`atomtune prune`: keep the few atoms that matter and throw the others away, for good."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from atomtune.cli.hardware import DEFAULT_BASE, Base
from atomtune.errors import UserError
from atomtune.files import refuse_output

if TYPE_CHECKING:
    from atomtune.analysis.likeness import Rung
    from atomtune.storage.reading import AdapterInfo


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

    Without --keep half of the atoms are thrown away, then half of the rest and so on, as long as 90 % of the likeness
    is left: of what the adapter gained over the base in drawing its images (on moji the judge's fidelity to them, else
    the training loss).

    The small adapter in OUT/adapter draws exactly what the full adapter draws when the other atoms are dropped.
    Addresses such as L17[137] stay the same. With --finetune-steps the small adapter is then trained further, on the
    images and with the settings of its run; OUT/pruned is then the run from before this training.

    Args:
        adapter: Folder of a run or of an adapter.
        out: Folder for the run of the small adapter.
        keep: Atoms to keep over the whole model (by default as few as keep 90 % of the likeness).
        keep_per_layer: Atoms to keep in each layer, instead of --keep.
        by: How atoms are ranked. energy: mean |s_m|·‖d_m‖, measured in training and read from the file. gradient: how
            much the loss on the run's images depends on each atom; it keeps more of the likeness, and needs the run
            and its images. By default gradient if they are there, else energy.
        finetune_steps: Further training steps of the small adapter (needs a run, with its config.yaml and its images).
        learning_rate: Learning rate of the further training (by default that of the run).
    """
    if keep is not None and keep_per_layer is not None:
        raise UserError("give one of --keep and --keep-per-layer, or neither: over the whole model, or in each layer.")
    if finetune_steps < 0:
        raise UserError(f"--finetune-steps must be 0 or more, got {finetune_steps}.")
    from atomtune import bases, steering
    from atomtune.cli.generate import drawing_command
    from atomtune.storage import folders, reading, runs
    from atomtune.storage.metadata import WEIGHTS_FILE, atoms_in

    info = reading.adapter_info(adapter)
    info.refuse_other_than("ATOMS", "only atoms can be pruned")
    there = atoms_in(info.folder)
    for flag, count, most in (("--keep", keep, sum(there)), ("--keep-per-layer", keep_per_layer, max(there))):
        if count is not None and not 1 <= count <= most:
            where = " in its largest layer" if flag != "--keep" else ""
            raise UserError(f"{flag} must be from 1 to {most}, the atoms that {adapter} has{where}, got {count}.")
    training = runs.training_of(adapter)
    images_there = training is not None and Path(training["images"]).exists()
    if training is None and (finetune_steps or by == "gradient"):
        flag = "--finetune-steps" if finetune_steps else "--by gradient"
        raise UserError(f"{flag} needs the run that {adapter} came from, and {_unknown_run(adapter)}.")
    missing = f"{training['images']} is not there" if training else _unknown_run(adapter)
    if keep is None and keep_per_layer is None and not images_there:
        raise UserError(f"no number of atoms is proposed, because {missing}: give --keep, from 1 to {sum(there)}.")
    by = by or ("gradient" if images_there else "energy")
    refuse_output(out, adapter, *([training["images"]] if training else []))
    runs.refuse_taken(out)
    name, pipe = base.name(info), base.open(info)
    model = folders.load_adapter(pipe, adapter)
    board = steering.board(model)
    scores = board.mean_energy() if by == "energy" else _gradients(board, pipe, training)
    measure, unknown = _likeness(pipe, training) if images_there else (None, missing)
    asked, per_layer = keep or keep_per_layer, keep_per_layer is not None
    kept, best = None, None
    if measure:
        kept, best = _measured(pipe, measure, board, scores, asked, per_layer, bool(finetune_steps))
    if not asked:
        if best is None:
            why = unknown or "half of the atoms keep less than 90 % of the likeness"
            raise UserError(f"no number of atoms is proposed, because {why}: give --keep.")
        print(f"Keeping {best.atoms:,} atoms, the fewest here with 90 % of the likeness or more.")
        asked, kept = best.atoms, best.likeness
    board.keep(asked, scores, per_layer)
    result = model.prune()  # pyright: ignore[reportCallIssue]  AtomModel's
    pruned = out / "pruned" if finetune_steps else out
    hardware = bases.precision_and_device(pipe)
    options = {"adapter": adapter, "out": pruned, "keep_per_layer" if per_layer else "keep": asked, "by": by}
    runs.write_run(
        pruned,
        lambda folder: folders.save_adapter(
            model,
            folder,
            base=name,
            **info.trained_for,
            card=_card(info, result, f"{by}, in {{dtype}} on {{device}}".format(**hardware)),
        ),
        "prune",
        options | {"base": name},
        {"base": name, "method": "atoms", **info.trained_for, "atoms": result.atoms, "layers": result.layers}
        | {"atoms_before": result.atoms_before, "by": by, "likeness": kept and round(kept, 3), **hardware},
        training,
    )
    after = None
    if finetune_steps:
        from atomtune.training import configure, customize

        overrides = {"init_adapter": pruned, "steps": finetune_steps, "out": out, "overwrite": False, "base": name}
        overrides |= base.for_training() | ({} if learning_rate is None else {"learning_rate": learning_rate})
        del pipe, model, board  # the run opens a base of its own
        customize(configure(**(training or {}) | {"method": "atoms"} | overrides))
        if measure:
            tuned = base.open(info)
            folders.load_adapter(tuned, out)
            after = measure(tuned)
    before, size = ((folder / WEIGHTS_FILE).stat().st_size / 1e6 for folder in (info.folder, out / "adapter"))
    print(
        f"Kept {result.atoms:,} of {result.atoms_before:,} atoms, in {result.layers} of {len(there)} layers: "
        f"{size:.2f} MB instead of {before:.2f} MB."
    )
    print(_verdict(kept, after, finetune_steps, unknown, best, asked))
    print(f"The small adapter is in {out}. Draw with it: {drawing_command(out, info)}")


def _unknown_run(adapter: Path) -> str:
    """Why the settings are not known with which the adapter was trained."""
    from atomtune.storage import runs

    if runs.settings_of(adapter).get("command") == "merge":
        return f"{adapter} is merged from several adapters"
    return f"no config.yaml of this version names the images of {adapter}"


def _likeness(pipe: Any, training: Any) -> tuple[Any, str]:
    """The likeness to the images of the run, or None and the reason why it cannot be measured."""
    from atomtune.analysis.likeness import Likeness
    from atomtune.training import configure

    config = configure(**training)
    likeness = Likeness(pipe, config.images, config.instance_prompt, config.resolution, config.alpha_mask)
    if likeness.known:
        return likeness, ""
    return None, "the whole adapter is hardly nearer to its images than the base is"


def _measured(
    pipe: Any, measure: Any, board: Any, scores: list[Any], asked: int | None, per_layer: bool, trained_further: bool
) -> "tuple[float | None, Rung | None]":
    """The likeness with as many atoms as asked for; and if none are, or they keep little, the proposal of the ladder,
    which is printed."""
    from atomtune.analysis import likeness

    kept = likeness.with_best(board, asked, scores, lambda: measure(pipe), per_layer) if asked else None
    if kept is not None and (kept >= likeness.ENOUGH or trained_further):
        return kept, None
    rungs = likeness.halvings(board, scores, lambda: measure(pipe))
    rows = [(len(board), 1.0), *((rung.atoms, rung.likeness) for rung in rungs)]
    print("\n".join([f"{'atoms':>7}  likeness", *(f"{count:>7,}  {share:>8.0%}" for count, share in rows)]))
    return kept, likeness.proposal(rungs)


def _verdict(
    kept: float | None, after: float | None, steps: int, unknown: str, best: "Rung | None", asked: int | None
) -> str:
    """How much of the likeness is left, and what helps where it is little."""
    from atomtune.analysis.likeness import ENOUGH

    if kept is None:
        return f"How much of the likeness is left was not measured, because {unknown}."
    left = f"{max(kept, 0):.0%} of the likeness is left"
    if after is not None:
        return f"{left} before the further training, and {max(after, 0):.0%} after its {steps} steps."
    if kept >= ENOUGH:
        return f"{left}."
    more = f"keep more (--keep {best.atoms} keeps {best.likeness:.0%}), " if best else ""
    return (
        f"Only {left}. What helps: {more}train the small adapter further (--finetune-steps 50), or train few "
        f"atoms from the start (customize --total-atoms {asked})."
    )


def _gradients(board: Any, pipe: Any, training: Any) -> list[Any]:
    """Importance by gradient on the run's images, one image in a batch, so that large models fit into memory."""
    import torch

    from atomtune.analysis.examples import training_examples
    from atomtune.analysis.importance import importance
    from atomtune.training import configure

    config = configure(**training)
    options = {"resolution": config.resolution, "alpha_mask": config.alpha_mask}
    examples = training_examples(pipe, config.images, config.instance_prompt, **options)
    each = [importance(board, "gradient", loss=one.losses) for one in examples.one_by_one()]
    return [torch.stack(scores).mean(0) for scores in zip(*each)]


def _card(info: "AdapterInfo", result: Any, by: str) -> str | None:
    """The card that the adapter had, and a line about the pruning."""
    from atomtune.storage.cards import read_card

    if (card := read_card(info.folder)) is None:
        return None
    line = f"Pruned to {result.atoms} of {result.atoms_before:,} atoms, by {by}."
    return f"{card}\n\n{line}\n"
