"""`atomtune inspect`: one page that shows what an adapter learned."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from atomtune.cli.hardware import DEFAULT_BASE, Base
from atomtune.errors import UserError, check_seed
from atomtune.files import read_prompts
from atomtune.sizes import Resolution

if TYPE_CHECKING:
    from atomtune.storage.reading import AdapterInfo

STAGES = {
    "base": "drawing without the adapter",
    "adapter": "drawing with the adapter",
    "others": "drawing other prompts without it",
    "others, adapter": "drawing other prompts with it",
    "names": "looking for names",
    "influence": "silencing one atom at a time",
    "ladder": "keeping only the best atoms",
    "density": "changing the density",
}


def inspect(
    adapter: Annotated[Path, Parameter(name="RUN-OR-ADAPTER")],
    /,
    *,
    prompts: Path | None = None,
    out: Path | None = None,
    against: Path | None = None,
    top: int = 24,
    seed: int = 0,
    steps: int | None = None,
    guidance_scale: float | None = None,
    resolution: Resolution | None = None,
    naming_prompts: int = 96,
    batch_size: int = 8,
    base: Base = DEFAULT_BASE,
) -> None:
    """Show what an adapter learned: which atoms, where, when, and what each one does, on one page.

    The page is a single HTML file that loads nothing from the network. It begins with the training images of the run,
    beside what is drawn now, and says whether the subject was learnt. How much atoms add is measured on the prompts;
    names are proposed from other prompts, in which subjects, sizes, places and backgrounds vary independently. A row
    shows what the adapter does to prompts that have nothing to do with the subject.

    Args:
        adapter: Folder of a run or of an adapter.
        prompts: Text file with one prompt a line (by default eight prompts with the learnt subject).
        out: The page (report.html in the run by default).
        against: Another adapter of the same base, to compare with.
        top: Number of the strongest atoms that are shown in detail.
        seed: Seed of all images.
        steps: Denoising steps (the base's own number by default).
        guidance_scale: Strength of classifier-free guidance (the base's own by default).
        resolution: Size in pixels: 1024 for a square, 1024x768 for WIDTHxHEIGHT (the base's own by default).
        naming_prompts: Number of images from which names of atoms are proposed. A name needs 6 images with the word.
        batch_size: Images drawn in one batch.
    """
    from rich.console import Console
    from rich.progress import Progress

    from atomtune import bases
    from atomtune.analysis import inspection, report
    from atomtune.storage import folders, reading, runs

    for flag, value in (("--top", top), ("--naming-prompts", naming_prompts), ("--batch-size", batch_size)):
        if value < 1:
            raise UserError(f"{flag} must be at least 1, got {value}.")
    check_seed(seed, naming_prompts)
    info = reading.adapter_info(adapter)
    info.refuse_other_than("ATOMS", "only atoms can be inspected one by one")
    out = out or adapter / "report.html"
    report.refuse_other_file(out)
    other = reading.adapter_info(against) if against else info
    other.refuse_other_than("ATOMS", "only atoms can be compared one by one")
    reading.refuse_different_bases([info, other])
    texts = read_prompts(prompts) if prompts else []
    texts = texts or _prompts_about(info, 8)
    pipe = base.open(info)
    model = folders.load_adapter(pipe, adapter)
    if against:
        folders.load_adapter(pipe, against, "against")
        model.set_adapter("default", inference_mode=True)
    with Progress(console=Console(stderr=True), transient=True) as bars:
        tasks = {}

        def on_progress(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(STAGES[stage], total=total)
            bars.update(tasks[stage], completed=done)

        found = inspection.inspect(
            pipe,
            texts,
            subjects=info.subjects,
            backgrounds=_backgrounds(info),
            run=runs.training_of(adapter),
            against=("against", _prompts_about(other, 4)) if against else None,
            top=top,
            naming_prompts=naming_prompts,
            seed=seed,
            steps=steps,
            guidance_scale=guidance_scale,
            resolution=resolution,
            batch_size=batch_size,
            on_progress=on_progress,
        )
    found.against = str(against or "")
    made_by = {"adapter": adapter, "base": base.name(info), "seed": seed, "prompts": len(found.prompts)}
    size = report.write_report(found, out, made_by | bases.precision_and_device(pipe))
    if said := f"{found.learnt.verdict} {found.learnt}".strip() or found.learnt.missing:
        print(said)
    print(f"Look at {out} ({size / 1e6:.1f} MB).")


def _backgrounds(info: "AdapterInfo") -> list[str] | None:
    """The colours on which all its subjects can be seen; None if there are none, or they are not known."""
    each = [subject.backgrounds for subject in info.subjects]
    return [colour for colour in each[0] if all(colour in others for others in each)] or None if each else None


def _prompts_about(info: "AdapterInfo", count: int) -> list[str]:
    """Prompts with the subjects, which take turns, in different sizes, places and backgrounds."""
    import torch

    from atomtune.analysis.prompts import crossed_prompts

    words = [str(subject) for subject in info.subjects]
    classes = list(dict.fromkeys(subject.class_name for subject in info.subjects))
    generator = torch.Generator().manual_seed(0)
    crossed = crossed_prompts(words, classes, 4 * count * max(1, len(words)), generator, _backgrounds(info))
    texts = list(dict.fromkeys(prompt.text for prompt in crossed))
    by_subject = [[text for text in texts if word in text] for word in words] or [texts]
    return [text for turn in zip(*by_subject) for text in turn][:count]
