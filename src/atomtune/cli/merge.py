"""`atomtune merge`: merge several adapters into one, or measure how far two overlap (`--report`)."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from atomtune.cli.generate import read_prompts
from atomtune.cli.hardware import DEFAULT_BASE, Base
from atomtune.errors import UserError, check_seed

if TYPE_CHECKING:
    from rich.table import Table

    from atomtune.analysis.overlap import Overlap
    from atomtune.storage.folders import AdapterInfo


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
        out: Folder for the merged adapter.
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

    from atomtune.storage.merging import merge, parts_of

    merge(adapters, out, combination_type, _numbers(weights))
    for part in parts_of(out):
        print(f"{part['adapter']}  weight {part['weight']:g}, ids from {part['first_id']}")
    print(f"The merged adapter is in {out}")


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
    from atomtune.storage import folders

    infos = [folders.adapter_info(path) for path in adapters]
    for info in infos:
        info.refuse_other_than("ATOMS", "only atoms can be compared one by one")
    folders.refuse_different_bases(infos)
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


def _trained_prompts(info: "AdapterInfo") -> list[str]:
    """A prompt of what an adapter was trained on; of a merged adapter, one for each of its parts."""
    from atomtune.prompts import subject_prompts

    sources = info.metadata.get("merged_from") or [info.metadata]
    words = [
        subject_prompts(info.base, f"{source['token']} {source['class_name']}", source.get("backgrounds", ()))[0]
        for source in sources
        if source.get("token")
    ]
    if not words:
        raise UserError(f"{info.path} does not name the words that it was trained with: give --prompts-file.")
    return words


def _tables(overlap: "Overlap") -> "list[Table]":
    from rich.table import Column, Table

    whole = Table("", *(Column(name, justify="right") for name in "AB"), title="The adapters")
    on_a, on_b = zip(*overlap.alive)
    for label, pair in {
        "atoms": overlap.atoms,
        "alive on prompts of A": on_a,
        "alive on prompts of B": on_b,
        "alive on both": overlap.alive_in_both,
    }.items():
        whole.add_row(label, *(f"{count:,}" for count in pair))
    whole.add_row("strength on the other's prompts, of its own", *(f"{share:.0%}" for share in overlap.strength))

    heads = ("layer", "span A", "span B", "overlap", "chance", "both act, on A", "on B", "cosine, on A", "on B")
    layers = Table(*(Column(head, justify="right") for head in heads), title="The layers that both adapt")
    for each in overlap.layers:
        both = [f"{share:.0%} ({chance:.0%})" for share, chance in zip(each.both, each.independent)]
        cosines = [f"{cosine:+.2f}" for cosine in each.cosine]
        ranks, spans = map(str, each.ranks), (f"{each.span_overlap:.2f}", f"{each.chance:.2f}")
        layers.add_row(each.address, *ranks, *spans, *both, *cosines)
    layers.caption = (
        "span: directions with 90 % of the energy; overlap: mean squared cosine of the principal angles, beside that "
        "of random spans; both act: share of tokens (if independent); cosine: of what the two add, below 0 they cancel."
    )
    return [whole, layers] if overlap.layers else [whole]
