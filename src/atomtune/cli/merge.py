"""`atomtune merge`: merge several adapters into one, or measure how far two overlap (`--report`)."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from atomtune.cli.hardware import DEFAULT_BASE, Base
from atomtune.errors import UserError, check_seed
from atomtune.files import read_prompts
from atomtune.shell import command_line

if TYPE_CHECKING:
    from rich.table import Table

    from atomtune.analysis.overlap import Overlap
    from atomtune.storage.reading import AdapterInfo


def merge(
    adapters: Annotated[list[Path], Parameter(name="RUN-OR-ADAPTER")],
    /,
    *,
    combination_type: Literal["cat", "linear"] = "cat",
    weights: Annotated[str | None, Parameter(allow_leading_hyphen=True)] = None,
    out: Path | None = None,
    report: bool = False,
    prompts_file: Annotated[list[Path] | None, Parameter(negative=())] = None,
    num: int = 4,
    seed: int = 0,
    steps: int | None = None,
    base: Base = DEFAULT_BASE,
) -> None:
    """Merge several adapters into one, or measure how far two of them overlap.

    Args:
        adapters: Folders of runs or adapters, two or more.
        combination_type: cat: the union of the atoms, exactly the sum of what the adapters add; linear: W_s and D
            summed entry by entry, for adapters of the same shape.
        weights: A weight for each adapter, with commas between them: 1,0.7 (all 1 by default).
        out: Folder for the run: the merged adapter, its settings and its numbers.
        report: Write no adapter. Draw prompts of each adapter with both active, and print how far they overlap.
        prompts_file: For the report: text file with one prompt a line. Give it once for both adapters, or twice, one
            file for each. By default a prompt of what each was trained on ("a sks teapot on a white background").
        num: For the report: images of each prompt.
        seed: For the report: seed of the first image of each prompt.
        steps: For the report: denoising steps (the base's own number by default).
    """
    if report:
        _report(adapters, prompts_file or [], num, seed, steps, base)
        return
    if out is None:
        raise UserError("--out is missing: name a folder for the merged adapter, or give --report.")

    from atomtune.cli.generate import drawing_command
    from atomtune.files import refuse_output
    from atomtune.storage import merging, reading, runs

    numbers = _numbers(weights)
    refuse_output(out, *map(reading.adapter_folder, adapters))
    runs.refuse_taken(out, unless_by="merge")
    merged = merging.merged(adapters, combination_type, numbers)
    for part in merged.parts:
        ids = f", and {part['first_id']} is added to the numbers of its atoms" if part["first_id"] else ""
        print(f"{part['adapter']} has weight {part['weight']:g}{ids}.")
    options = {"adapters": adapters, "combination_type": combination_type, "weights": weights, "out": out}
    facts = {"base": merged.config.base_model_name_or_path, "method": "atoms", "atoms": sum(merged.atoms_by_layer)}
    facts |= {"layers": len(merged.atoms_by_layer), "parts": merged.parts}
    runs.write_run(out, merged.save, "merge", options, facts)
    print(f"The merged adapter is in {out}. Draw with it: {drawing_command(out, reading.adapter_info(out))}")


def _numbers(weights: str | None) -> list[float] | None:
    if weights is None:
        return None
    try:
        return [float(weight) for weight in weights.split(",")]
    except ValueError as error:
        raise UserError(f"--weights must be numbers with commas between, such as 1,0.7; got {weights!r}.") from error


def _report(
    adapters: list[Path],
    files: list[Path],
    num: int,
    seed: int,
    steps: int | None,
    base: Base,
) -> None:
    check_seed(seed, num)
    if len(adapters) != 2:
        raise UserError(f"--report compares two adapters, got {len(adapters)}.")
    if len(files) > 2:
        raise UserError(f"give --prompts-file once for both adapters or twice, one for each, got {len(files)}.")

    from rich.console import Console

    from atomtune import bases
    from atomtune.analysis.overlap import overlap
    from atomtune.storage import folders, reading

    infos = [reading.adapter_info(path) for path in adapters]
    for info in infos:
        info.refuse_other_than("ATOMS", "only atoms can be compared one by one")
    reading.refuse_different_bases(infos)
    prompts = [read_prompts(file) for file in (files * 2)[:2]] if files else list(map(_trained_prompts, infos))
    pipe = base.open(infos[0])
    for name, path in zip(("first", "second"), adapters):
        folders.load_adapter(pipe, path, name)
    measured = overlap(pipe, (prompts[0], prompts[1]), ("first", "second"), num, seed, steps)
    console = Console()
    for name, path, own in zip("AB", adapters, prompts):
        console.print(f"{name}: {path}, on {', '.join(map(repr, own))}", soft_wrap=True, highlight=False)
    console.print("drawn in {dtype} on {device}".format(**bases.precision_and_device(pipe)), highlight=False)
    for table in _tables(measured):
        console.print(table)
    print(EXPLAINED)
    print(_verdict(measured, adapters))


EXPLAINED = """\
same directions: from 0 (the two add different directions) to 1 (the same);
both act: share of the tokens at which both add much, on the prompts of each;
cosine: of what the two add, above 0 they add up, below 0 they cancel;
in brackets: two adapters that know nothing of each other.
"""


def _trained_prompts(info: "AdapterInfo") -> list[str]:
    """A prompt of what an adapter was trained on; of a merged adapter, one for each of its parts."""
    if prompts := info.prompts():
        return prompts
    raise UserError(f"{info.path} does not name the words that it was trained with: give --prompts-file.")


def _tables(overlap: "Overlap") -> "list[Table]":
    from rich import box
    from rich.table import Column, Table

    whole = Table("", *(Column(name, justify="right") for name in "AB"), box=box.SIMPLE)
    on_a, on_b = zip(*overlap.alive)
    for label, pair in {
        "atoms": overlap.atoms,
        "that are used on the prompts of A": on_a,
        "that are used on the prompts of B": on_b,
        "that are used on both": overlap.alive_in_both,
    }.items():
        whole.add_row(label, *(f"{count:,}" for count in pair))
    if not overlap.layers:
        return [whole]
    whole.add_row("strength on the other's prompts, of its own", *(f"{share:.0%}" for share in overlap.strength))
    heads = ("layer", "same directions", "both act, A", "both act, B", "cosine, A", "cosine, B")
    layers = Table(*(Column(head, justify="right") for head in heads), box=box.SIMPLE)
    for each in overlap.layers:
        both = [f"{share:.0%} ({chance:.0%})" for share, chance in zip(each.both, each.independent)]
        cosines = [f"{cosine:+.2f}" for cosine in each.cosine]
        layers.add_row(each.address, f"{each.span_overlap:.2f} ({each.chance:.2f})", *both, *cosines)
    return [whole, layers]


def _verdict(overlap: "Overlap", adapters: list[Path]) -> str:
    """Whether the two disturb each other, why, and what to do, in words."""
    from atomtune.analysis.overlap import verdict

    relation, numbers = overlap.relation if overlap.layers else "elsewhere", ""
    if overlap.layers:
        cosines = [f"{overlap.mean(lambda layer, on=on: layer.cosine[on]):+.2f}" for on in (0, 1)]
        spans = [overlap.mean(lambda layer: layer.span_overlap), overlap.mean(lambda layer: layer.chance)]
        numbers = f" (on average over the layers: cosine {cosines[0]} on the prompts of A and {cosines[1]} on those of "
        numbers += f"B, directions in common {spans[0]:.2f}, by chance {spans[1]:.2f})"
    sentence = verdict(overlap).removesuffix(".")
    weights = {"together": "0.7,0.7", "against": "1,0.7"}.get(relation, "")
    advice = "Turn them down, look at what comes out, and try other weights" if weights else "Merge them as they are"
    options = ["--weights", weights] if weights else []
    return f"{sentence}{numbers}. {advice}:\n  {command_line('merge', *adapters, *options, '--out', 'runs/merged')}"
