"""Edit one image: learn it, then draw a new prompt with fewer and fewer atoms (Fig. 6).

With all its atoms an adapter that learnt one image draws that image, whatever the prompt is. With fewer atoms the
prompt has more effect. Images are drawn over two ladders, densities (a token uses fewer atoms) and numbers of atoms,
and every rung is scored by alignment a to the edit prompt and fidelity f to the image. The best rung has the largest

    2 a f / (a + f)      among the rungs with a >= FLOOR and f >= FLOOR

and there is no best rung if no rung has both: such images show what was asked or what was learnt, but not the two.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from PIL import Image

from atomtune import bases, manifest, sampling
from atomtune.analysis import ladders
from atomtune.devices import own_threads, pick_device, use_idle_cores
from atomtune.errors import UserError, check_seed
from atomtune.files import expanded, write_text
from atomtune.metrics.models import CLIP, DINO
from atomtune.metrics.scores import load_models
from atomtune.steering import AtomBoard, board
from atomtune.storage import folders
from atomtune.training import configure, customize
from atomtune.training.data import fitted, read_image
from atomtune.training.recipes import ONE_IMAGE, recipe_for, recipe_name_for

PRESET = "preset.json"
RESULTS = ("edit.png", "edit.json", PRESET)
FLOOR = 0.35
"""The least alignment, and the least fidelity, of a best rung. Of drawings of another subject 99 in 100 have less of
either: 0.34 of fidelity (`metrics/weights/judge.json`), 0.29 of alignment (1,259 pairs of drawings and prompts)."""
ADVICE = (
    "more --steps, if little of the image is left where the prompt is followed; a --source-prompt that says what the "
    "image shows, in the words of the --prompt; a --prompt that changes less, or names what the base can draw."
)
"""What can be changed if there is no best rung."""


@runtime_checkable
class Scorer(Protocol):
    """An object that scores images: `atomtune.metrics.Judge`, or any other with these two methods."""

    def alignment(self, images: Sequence[Any], prompts: Sequence[str]) -> np.ndarray: ...

    def fidelity(self, images: Sequence[Any], references: Sequence[Any]) -> np.ndarray: ...


class Relative:
    """The scores of CLIP and DINO on the scale that `FLOOR` is made for, whatever their models.

    alignment   0: that of the image as it was, 1: that of the base's own images of the prompt
    fidelity    0: that of the base's own images of the prompt, 1: the image itself

    Args:
        models: Of `metrics.scores.load_models`. Alignment is CLIP's, fidelity DINO's, else CLIP's.
        prompt, source, drawn: The edit prompt, the image as it was, and the base's images of the prompt.
    """

    def __init__(self, models: Mapping[str, Any], prompt: str, source: Image.Image, drawn: Sequence[Image.Image]):
        self.clip, self.features = models["clip"], models.get("dino", models["clip"])
        self.lowest = float(self.clip.alignment([source], [prompt]).mean())
        self.range = float(self.clip.alignment(drawn, [prompt] * len(drawn)).mean()) - self.lowest
        self.unlike = float(self.features.fidelity(drawn, [source]).mean())
        if self.range <= 0:
            raise UserError(
                f"to CLIP the image is as much like {prompt!r} as what the base draws, so alignment cannot be scored: "
                "leave the metrics out and choose a rung by eye, or ask for another edit."
            )

    def alignment(self, images: Sequence[Any], prompts: Sequence[str]) -> np.ndarray:
        return (self.clip.alignment(images, prompts) - self.lowest) / self.range

    def fidelity(self, images: Sequence[Any], references: Sequence[Any]) -> np.ndarray:
        return (self.features.fidelity(images, references) - self.unlike) / (1 - self.unlike)


@dataclass
class Rung:
    """One step of a ladder: its label, its dials, and the scores of its images (None without a scorer)."""

    label: str
    preset: dict[str, Any]
    alignment: float | None = None
    fidelity: float | None = None

    @property
    def trade_off(self) -> float:
        """Harmonic mean of alignment and fidelity, negative values taken as 0."""
        a, f = max(self.alignment or 0.0, 0.0), max(self.fidelity or 0.0, 0.0)
        return 2 * a * f / (a + f) if a + f else 0.0

    def keeps_both(self, floor: float) -> bool:
        """Whether alignment and fidelity are both at least `floor`."""
        return self.alignment is not None and self.fidelity is not None and min(self.alignment, self.fidelity) >= floor


@own_threads()
def edit(
    image: str | Path,
    prompt: str,
    out: str | Path,
    source_prompt: str | None = None,
    remove: Sequence[str] = (),
    num: int = 2,
    seed: int = 0,
    scorer: Scorer | None = None,
    floor: float = FLOOR,
    metrics: Sequence[str] = (),
    clip: str = CLIP,
    dino: str = DINO,
    dtype: torch.dtype | str = "auto",
    device: torch.device | str = "auto",
    **options: Any,
) -> dict[str, Any]:
    """Learn `image`, draw `prompt` over two ladders of atoms, and return the rungs with their scores.

    Writes the run into `out` (see `customize`), a strip of the images as `out/edit.png`, the scores as
    `out/edit.json`, and the best rung's dials as `out/preset.json`, for `generate --preset`. There is no such file if
    no rung is best, or if the best one has all atoms, which needs no dials. These files are of the latest edit; copies
    for each edit, with all its images, are in a folder of `out/edit/`. `source_prompt` is what the image shows now.
    `remove` are addresses of atoms without which the best rung, or the one with all atoms if none is best, is drawn
    once more.

    On moji the judge scores. On any base CLIP does, for `metrics=["clip"]`, with DINO for fidelity if it is named too
    (`clip` and `dino` are their folders or names of the hub; see `Relative` for the scale), or a `scorer` of your own.
    Else there are no scores and no best rung. No rung is best whose alignment or fidelity is below `floor`: give one
    for a scorer of another scale than the judge's. `dtype` and `device` are
    those of `load_base`, for training too. Further options are passed to `customize`. Raises `UserError`.
    """
    image, out = expanded(image), expanded(out)
    check_seed(seed, num)
    if not image.is_file():
        raise UserError(f"there is no image {str(image)!r}: edit takes one image.")
    source_prompt = source_prompt or "an image"
    base = str(options.get("base", bases.MOJI))
    run: dict[str, Any] = {"sample_every": 0, "seed": seed, "device": str(device)}
    recipe = recipe_for(base, options, ONE_IMAGE)
    if not (recipe_name_for(base, ONE_IMAGE) or "").endswith(ONE_IMAGE):  # no recipe, or one for several images
        recipe = {"epochs": 60, "gradient_accumulation_steps": 1}  # as in the paper
    run |= {"mixed_precision": str(dtype).removeprefix("torch.")} | recipe | options
    run |= {"images": image, "class_name": source_prompt, "caption": source_prompt, "out": out, "method": "atoms"}
    config = configure(**run)
    if metrics and ("clip" not in metrics or {*metrics} - {"clip", "dino"} or scorer):
        raise UserError("rungs are scored by clip, or by clip and dino, or by a scorer of your own: name one of these.")
    models = load_models(metrics, clip, dino, pick_device(device))
    manifest.refuse_foreign(config.out, *RESULTS)
    customize(config)

    pipe = bases.load_base(base, dtype, device, config.quantize)
    use_idle_cores(bases.denoiser(pipe))
    source = fitted(read_image(image), bases.resolution_for(pipe, config.resolution))
    before = sampling.generate(pipe, prompt, num, seed)
    made_by = sampling.made_by(pipe, out) | {"source_prompt": source_prompt}
    asked = {
        "prompt": prompt,
        "seed": seed,
        "num": num,
        "remove": list(remove),
        "metrics": list(metrics),
        **bases.precision_and_device(pipe),
    }
    own = out / "edit" / f"{sampling.file_words(prompt)}-{sampling.digest(made_by | asked)}"
    manifest.refuse_foreign(own, *RESULTS)
    folders.load_adapter(pipe, out)
    atoms = board(pipe)
    for address in remove:
        atoms[address]
    if models:
        scorer = Relative(models, prompt, source, [drawing.image for drawing in before])
    elif scorer is None and base == bases.MOJI:
        from atomtune.metrics import load_judge

        scorer = load_judge()

    def keep(label: str, drawings: list[sampling.Drawing]) -> list[Image.Image]:
        for drawing in drawings:
            drawing.settings |= made_by | {"rung": label}
        sampling.save_images(drawings, own / sampling.file_words(label))
        return [drawing.image for drawing in drawings]

    def draw(rung: Rung) -> list[Image.Image]:
        atoms.apply(rung.preset)
        images = keep(rung.label, sampling.generate(pipe, prompt, num, seed))
        if scorer is not None:
            rung.alignment = round(float(np.mean(scorer.alignment(images, [prompt] * num))), 3)
            rung.fidelity = round(float(np.mean(scorer.fidelity(images, [source]))), 3)
        return images

    rungs = _ladder(atoms)
    columns = {"the image": [source] * num, "base": keep("base", before)}
    columns |= {rung.label: draw(rung) for rung in rungs}
    best = max((rung for rung in rungs if rung.keeps_both(floor)), key=lambda rung: rung.trade_off, default=None)
    if remove:
        start = best or rungs[0]
        without = Rung(f"{start.label} without {', '.join(remove)}", _without(atoms, start.preset, remove))
        columns[without.label] = draw(without)
        rungs.append(without)
    atoms.reset()

    heads = {rung.label: _head(rung, best) for rung in rungs}
    rows = [[images[i] for images in columns.values()] for i in range(num)]
    labels = [heads.get(label, label) for label in columns]
    strip = sampling.grid(rows, [""] * num, labels)
    result = {
        **asked,
        **made_by,
        "best": best.label if best else None,
        "preset": str(out / PRESET) if best and best.preset else None,
        "folder": str(own),
        "rungs": [asdict(rung) for rung in rungs],
    }
    texts = {"edit.json": json.dumps(result, indent=1) + "\n"}
    if best and best.preset:
        texts[PRESET] = json.dumps(best.preset, indent=1) + "\n"
    for folder in (own, out):
        (folder / PRESET).unlink(missing_ok=True)  # an earlier edit's: one that is not ours was refused above
        manifest.record(folder, *(folder / name for name in ("edit.png", *texts)))
        sampling.save_png(strip, folder / "edit.png", asked | made_by)
        for name, text in texts.items():
            write_text(folder / name, text)
    return result


def read_ladder(out: str | Path) -> tuple[dict[str, Any], list[tuple[Rung, Image.Image]]]:
    """What the latest edit in `out` came to, as `edit` returned it, and each rung with its first image. Raises
    `UserError` if there is no edit."""
    out = expanded(out)
    try:
        result = json.loads((out / "edit.json").read_text(encoding="utf-8"))
        rungs = [Rung(**rung) for rung in result["rungs"]]
        (own,) = [folder for folder in (out / "edit").iterdir() if folder.name == Path(result["folder"]).name]
        files = [min((own / sampling.file_words(rung.label)).glob("000-*.png")) for rung in rungs]
        return result, [(rung, sampling.read_image(file)) for rung, file in zip(rungs, files)]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"there is no edit in {out}, or not all of it: run `atomtune edit` again.") from error


def _ladder(atoms: AtomBoard) -> list[Rung]:
    """All atoms; then lower densities of all atoms; then fewer atoms, by their energy in training."""
    atoms.reset()
    rungs = [Rung("all atoms", {})]
    trained = atoms.density
    for density in reversed([density for density in ladders.densities(atoms) if density < trained]):
        atoms.density = density
        k = max(int(dictionary.sigma.k.sum()) for dictionary in atoms.dictionaries)
        rungs.append(Rung(f"{k} a token", atoms.preset()))
        atoms.reset()
    for count in reversed(ladders.counts(len(atoms))):
        atoms.keep(count)
        rungs.append(Rung(f"{count} atoms", atoms.preset()))
        atoms.reset()
    return rungs


def _without(atoms: AtomBoard, preset: dict[str, Any], remove: Sequence[str]) -> dict[str, Any]:
    atoms.apply(preset)
    atoms.drop(remove)
    return atoms.preset()


def _head(rung: Rung, best: Rung | None) -> str:
    scores = "" if rung.alignment is None else f" prompt {rung.alignment:.2f} image {rung.fidelity:.2f}"
    return f"{'BEST: ' if rung is best else ''}{rung.label}{scores}"
