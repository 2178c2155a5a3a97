"""Runs side by side: the base and several adapters draw the same prompts from the same noise, and are scored.

Each adapter is a column, and each number a mean over all its images. Fidelity is to the images that were learnt; drift
is what happens to prompts that have nothing to do with them.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from atomtune import bases, manifest, sampling
from atomtune.devices import own_threads, pick_device, use_idle_cores
from atomtune.errors import UserError, check_seed
from atomtune.files import expanded, refuse_output, write_text
from atomtune.metrics.drift import other_prompts
from atomtune.metrics.models import CLIP, DINO
from atomtune.metrics.scores import changes, load_models, rounded, scores, table
from atomtune.prompts import without_tokens
from atomtune.sizes import GivenSize, Size
from atomtune.storage import folders, reading, runs
from atomtune.storage.metadata import WEIGHTS_FILE, atoms_in
from atomtune.training.data import fitted, image_files, read_image

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from PIL import Image

logger = logging.getLogger(__name__)

ON_MOJI = ("judge", "vendi", "drift", "pres", "div")
OTHERS = (10, 5)  # prompts that have little to do with the class, and prompts of things like it
RESULTS = ("scores.json", "grid.png")
NO_IMAGES = "none"
RESERVED = ("base", "images", "", "..")
"""No labels: columns and rows of their own, and no names of folders."""


@own_threads()
def compare(
    adapters: Sequence[str | Path] | Mapping[str, str | Path],
    out: str | Path = "runs/compare",
    prompts: Sequence[str] = (),
    metrics: Sequence[str] | None = None,
    images: str | Path | None = None,
    num: int = 4,
    seed: int = 0,
    steps: int | None = None,
    guidance_scale: float | None = None,
    resolution: GivenSize | None = None,
    base: str | None = None,
    dtype: torch.dtype | str = "auto",
    device: torch.device | str = "auto",
    clip: str = CLIP,
    dino: str = DINO,
    on_column: Callable[[str], object] = lambda label: None,
) -> dict[str, Any]:
    """Draw the same prompts with the base and with each adapter, from the same noise, and score them.

    Returns {"scores": {label: {key of `metrics.scores.ROWS`: number}}}, "base" first, with the settings, as it is in
    `out/scores.json`. `out/grid.png` has the first image of each prompt, a row for each label, and all images are in a
    folder of `out/images` for each label. Images that are there already are not drawn again.

    Args:
        adapters: Runs or adapters of one base, or {label: run or adapter}. By default the label is the
            last part of the path.
        prompts: By default, up to eight that name the subject of the first adapter.
        metrics: Of judge, clip, dino, image_reward, vendi, drift, pres, div. By default those of them that need no
            model to be loaded: on moji all but clip, dino and image_reward, elsewhere drift of pixels. The features of
            vendi, drift, pres and div are DINO's, else CLIP's, else the judge's.
        images: Folder of images of the subject, for fidelity. By default those that the first run was trained on;
            "none" for no fidelity.
        num: Images of each prompt, with seeds seed, seed + 1, ...
        steps: As in `generate`.
        guidance_scale: As in `generate`.
        resolution: As in `generate`.
        base: As in `load_base`; by default that of the first adapter.
        dtype: As in `load_base`.
        device: As in `load_base`.
        clip: A folder or a name of the hub.
        dino: A folder or a name of the hub.
        on_column: Called with each label before its images are drawn.

    Raises `UserError` if there is nothing to compare, for adapters of different bases, and as `load_models` does.
    """
    out, named = expanded(out), _labelled(adapters)
    infos = [reading.adapter_info(adapter) for adapter in named.values()]
    check_seed(seed, num)
    if not infos:
        raise UserError("there is nothing to compare: name one run or more.")
    reading.refuse_different_bases(infos)
    refuse_output(out)
    manifest.refuse_foreign(out, *RESULTS)
    name = base or infos[0].base
    metrics = tuple(metrics or (ON_MOJI if name == bases.MOJI else ("drift",)))
    prompts = list(prompts) or infos[0].prompts(8)
    if not prompts:
        raise UserError(f"{infos[0].path} does not say what it learnt: give prompts to compare with.")
    classes = list(dict.fromkeys(subject.class_name for subject in infos[0].subjects))
    tokens = [part.get("token") or "" for info in infos for part in info.parts]
    plain = [without_tokens(prompt, tokens) for prompt in prompts]
    if "judge" in metrics and name != bases.MOJI:
        raise UserError("the judge knows moji's drawings alone: choose clip or dino on another base.")
    models = load_models(metrics, clip, dino, pick_device(device))
    photos = _references(infos[0], images)
    _warn_of_missing(metrics, photos, infos[0], classes)
    rows: dict[str, list[Image.Image]] = {}
    references: list[Image.Image] = []
    drawing = {"seed": seed, "steps": steps, "guidance_scale": guidance_scale}
    drawing["resolution"] = None if resolution is None else Size.of(resolution).plain
    found: dict[str, Any] = {}
    untouched: dict[str, list[Image.Image]] = {}
    pipe: Any = None
    for label, info in zip(("base", *named), (None, *infos)):
        on_column(label)
        pipe = None  # before the next one is loaded
        pipe = bases.load_base(name, dtype, device)
        if info is None:
            use_idle_cores(bases.denoiser(pipe))
        adapter, numbers = (info.path, _put_on(pipe, info)) if info else (None, {})
        drawn = _drawn(out, label, pipe, adapter, prompts, num=num, **drawing)
        rows[label] = drawn[::num]
        references = references or [fitted(photo, Size(*drawn[0].size)) for photo in photos]
        numbers |= scores(models, metrics, drawn, plain, num, references)
        if {"drift", "pres", "div"} & {*metrics}:
            others = {
                key: _drawn(out, f"{label}/{key}", pipe, adapter, texts, **drawing)
                for key, texts in other_prompts(classes or "thing", *OTHERS).items()
                if len(classes) == 1 or key != "class"
            }
            untouched = untouched or others
            numbers |= changes(models, metrics, untouched, others, references)
        found[label] = rounded(numbers)
    settings = {
        "adapters": {label: str(adapter) for label, adapter in named.items()},
        "prompts": prompts,
        "metrics": list(metrics),
    }
    settings |= {"num": num} | drawing | bases.precision_and_device(pipe)
    manifest.record(out, *(out / file for file in RESULTS))
    result = {"scores": found} | settings
    write_text(out / RESULTS[0], json.dumps(result, indent=2))
    sheet = ({"images": references[: len(prompts)]} if references else {}) | rows
    sampling.save_png(sampling.grid(list(sheet.values()), list(sheet), prompts), out / RESULTS[1], settings)
    return result


def read_comparison(out: str | Path) -> tuple[dict[str, dict[str, Any]], Image.Image]:
    """The scores that `compare` wrote into `out`, {column: {score: value}}, and its grid of images. Raises
    `UserError` if they are not there."""
    scored, sheet = (expanded(out) / file for file in RESULTS)
    try:
        found = json.loads(scored.read_text(encoding="utf-8"))["scores"]
        list(table(found))  # raises what is wrong with them
        return found, sampling.read_image(sheet)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"there is no comparison in {out}, or not all of it: run `atomtune compare` again.") from error


def _drawn(
    out: Path, name: str, pipe: DiffusionPipeline, adapter: str | None, prompts: Sequence[str], **settings: Any
) -> list[Image.Image]:
    """Images with these settings of `plan`, in a folder of `out/images`. Those that are there are not drawn again."""
    folder = out / "images" / name
    planned = [own | sampling.made_by(pipe, adapter) for own in sampling.plan(pipe, prompts, **settings)]
    files = sampling.planned_files(planned, folder)
    manifest.record(out, *files)
    sampling.draw_missing(pipe, planned, folder)
    return [sampling.read_image(file) for file in files]


def _put_on(pipe: DiffusionPipeline, info: reading.AdapterInfo) -> dict[str, Any]:
    """Load the adapter. Its sizes, and what the numbers of its run say of its training, if there are any."""
    model = folders.load_adapter(pipe, info.path, trainable=True)
    parameters = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    model.requires_grad_(False).eval()
    found = {"parameters": parameters, "megabytes": (info.folder / WEIGHTS_FILE).stat().st_size / 1e6}
    if atoms := atoms_in(info.folder):
        found["atoms"] = sum(atoms)
    file = expanded(info.path) / runs.SUMMARY
    learnt = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    names = {"train_seconds": "seconds", "alive": "live_atoms", "used_per_token": "active_per_token"}
    return found | {key: learnt[name] for key, name in names.items() if name in learnt}


def _references(info: reading.AdapterInfo, images: str | Path | None) -> list[Image.Image]:
    """The images to be faithful to; none if they are not known, or no longer there."""
    if str(images) == NO_IMAGES:
        return []
    if images is None:
        training = runs.training_of(expanded(info.path))
        if training is None or len(info.subjects) > 1:  # whose images are not one subject's
            return []
        with contextlib.suppress(UserError):  # no longer there
            return [read_image(file) for file in image_files(Path(training["images"]))]
        return []
    return [read_image(file) for file in image_files(expanded(images))]


def _warn_of_missing(
    metrics: Sequence[str], references: Sequence[Any], first: reading.AdapterInfo, classes: Sequence[str]
) -> None:
    """Say which numbers there will not be, and why."""
    if not references and (without := [name for name in metrics if name in ("judge", "clip", "dino", "pres")]):
        why = "the images that the first adapter was trained on are not known or no longer there"
        how = "name their folder with --images"
        if len(first.subjects) > 1:
            why, how = "the first adapter learnt several subjects", "name the folder of one with --images and prompt it"
        logger.warning("%s, so %s cannot say how like them the drawings are: %s", why, ", ".join(without), how)
    if len(classes) != 1 and (without := [name for name in metrics if name in ("pres", "div")]):
        why = "is of several classes" if classes else "does not name its class"
        logger.warning("the first adapter %s, so there is no %s", why, " and no ".join(without))


def _labelled(adapters: Sequence[str | Path] | Mapping[str, str | Path]) -> dict[str, str | Path]:
    """A label for each adapter: the last part of its path, with a number where that is not its own."""
    if isinstance(adapters, Mapping):
        if wrong := [label for label in adapters if label in RESERVED or Path(label).name != label]:
            raise UserError(f"{wrong[0]!r} cannot be the label of an adapter: give a word other than base and images.")
        return dict(adapters)
    found: dict[str, str | Path] = {}
    for adapter in adapters:
        name = expanded(adapter).resolve().name
        labels = (f"{name}-{number}" if number > 1 else name for number in itertools.count(1))
        found[next(label for label in labels if label not in (*RESERVED, *found))] = adapter
    return found
