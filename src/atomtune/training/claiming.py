"""Decide whether a run may use its folder: to start there, to continue, to return finished numbers, or not at all."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from atomtune import bases, manifest
from atomtune.errors import UserError
from atomtune.files import refuse_output, remove_leftovers
from atomtune.parsing import parse_yaml
from atomtune.storage import reading
from atomtune.storage.metadata import WEIGHTS_FILE
from atomtune.storage.runs import settings_of
from atomtune.training import checkpoints, journal
from atomtune.training.config import LENGTH, CustomizeConfig

logger = logging.getLogger(__name__)

FOLDERS = ("adapter", "samples", "checkpoints", "logs", "class_images")
RECORD = Path("logs", "run.json")
"""The content that was trained on (see `content_of`), so that it is recognised under another path."""
_STEPS = ["step-" + "[0-9]" * digits for digits in (6, 7)]
NAMES = (
    "config.yaml", "summary.json", "samples.png", RECORD.as_posix(), journal.FILE.as_posix(),
    "class_images/[0-9][0-9][0-9][0-9].png",
    *(f"adapter/{name}" for name in reading.ADAPTER_FILES),
    *(f"checkpoints/{step}/{name}" for step in _STEPS for name in checkpoints.FILES),
    *(f"samples/{step}-{number}.png" for step in _STEPS for number in ("[0-9]", "[0-9][0-9]")),
)  # fmt: skip
"""Patterns of all files that a run writes, except those of its tracker in the logs."""

STARTS = ("out", "overwrite", "device", "offload")  # options of one start, which are not part of the run
WATCHING = (
    "sample_every", "sample_prompts", "checkpoint_every", "checkpoints_total_limit", "measure_every", "report_to",
)  # fmt: skip
"""Options that may change between the starts of a run, as may a longer `LENGTH`: they do not change what was
trained."""


TOGETHER = ("processes", "batch_size", "gradient_accumulation_steps")
"""Options that may change together, if their product stays the same: the number of images in a step."""


def _images_in_a_step(options: dict[str, Any]) -> int:
    return math.prod(options[name] for name in TOGETHER)


def claim(config: CustomizeConfig, steps: int, processes: int) -> dict[str, Any] | None:
    """Check that this run may use `out`. Return its numbers if it has finished all `steps`; raise `UserError` if `out`
    belongs to another run, or the run cannot go on to `steps`."""
    refuse_output(config.out, config.images, *([] if config.base == bases.MOJI else [config.base]))
    if config.init_adapter is not None:
        for name in FOLDERS:
            refuse_output(config.out / name, reading.adapter_folder(config.init_adapter))
    for folder in (config.out, *(config.out / name for name in FOLDERS)):
        remove_leftovers(folder)
    written = config.out / "config.yaml"
    unlisted = _is_run(written) and not manifest.written(config.out)
    refusal = f"{config.out} holds a run of an older atomtune, which kept no list of its files, so none is removed "
    refusal += "or replaced: choose another folder, or remove that one yourself."
    if config.overwrite and unlisted:
        raise UserError(refusal)
    if not unlisted:
        manifest.refuse_foreign(config.out, *NAMES)
    if config.overwrite:
        manifest.refuse_links(config.out)
    if config.overwrite or not written.is_file():
        return None
    if command := settings_of(config.out).get("command"):
        raise UserError(
            f"{config.out} holds what `atomtune {command}` wrote: train in another folder, with --init-adapter "
            f"{config.out} to start from what it has learnt (--overwrite starts over here)."
        )
    record = _record(config.out)
    defaults = CustomizeConfig(config.images, class_name=config.class_name, out=config.out)
    # written before some options existed
    there = defaults.to_dict() | settings_of(config.out)
    there["processes"], here = record.get("processes", processes), config.to_dict() | {"processes": processes}
    if unknown := sorted(there.keys() - here.keys()):
        raise UserError(
            f"{config.out} holds a run of another version of atomtune, with options that this one does not have "
            f"({', '.join(unknown)}): train in another folder (--overwrite starts over here)."
        )
    free = {*STARTS, *LENGTH, *WATCHING} | ({"images", "base"} & record.keys())
    if "init_adapter" in record and record["init_adapter"] == _digest(config.init_adapter):
        free.add("init_adapter")
    if _images_in_a_step(there) == _images_in_a_step(here):
        free |= {*TOGETHER}
    changed = {name: f"{name} {there.get(name)!r} there and {here[name]!r} now" for name in here}
    changed = {name: text for name, text in changed.items() if here[name] != there.get(name)}
    if different := [text for name, text in changed.items() if name not in free]:
        if TOGETHER[0] in changed:
            different.append(f"a step takes {_images_in_a_step(there)} images there and {_images_in_a_step(here)} now")
        raise _another_run(config, ", ".join(different))
    finished = _finished(config, steps)
    if finished is None and unlisted:
        raise UserError(refusal)
    if finished is not None and (unused := [text for name, text in changed.items() if name in WATCHING]):
        logger.warning("%s is finished, so this changes nothing before more steps: %s", config.out, ", ".join(unused))
    return finished


def _finished(config: CustomizeConfig, steps: int) -> dict[str, Any] | None:
    """The numbers of the run in `out` if it has finished `steps`; None if there are steps to train."""
    file, last = config.out / "summary.json", checkpoints.newest_checkpoint(config.out / "checkpoints")
    summary = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {"steps": 0}
    if summary["steps"] == steps:
        return summary
    trained = max(summary["steps"], checkpoints.step_of(last) if last else 0)
    if trained > steps:
        raise UserError(
            f"{config.out} has trained {trained} steps already, and {steps} are asked for: ask for at least as many, "
            "or train in another folder."
        )
    if summary["steps"] and last is None:
        raise UserError(
            f"{config.out} cannot go on from step {trained} to {steps}, because its checkpoints were removed: train "
            f"in another folder, with --init-adapter {config.out} to start from what it has learnt."
        )
    return None


def _another_run(config: CustomizeConfig, changes: str) -> UserError:
    last = checkpoints.newest_checkpoint(config.out / "checkpoints")
    finished = (config.out / "adapter").is_dir()
    learnt = config.out if finished else last and last / "adapter"
    further = f", with --init-adapter {learnt} to start from what it has learnt" if learnt else ""
    return UserError(
        f"{config.out} holds another run ({changes}): train in another folder{further} (--overwrite starts over here)."
    )


def _is_run(file: Path) -> bool:
    """Whether this is the config.yaml of a run."""
    try:
        options = parse_yaml(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(options, dict) and {"class_name", "out"} <= options.keys()


def content_of(
    config: CustomizeConfig, base: list[float], images: str, preserved: Sequence[list[str]]
) -> dict[str, Any]:
    """What the run learns from, without paths: digests of the images and the first adapter, fingerprint of the base,
    and the prompts that are preserved."""
    content = {"images": images, "base": base, "init_adapter": _digest(config.init_adapter)}
    return content | ({"preserved": list(preserved)} if preserved else {})


def _digest(adapter: Path | None) -> str | None:
    """Digest of an adapter's weights."""
    if adapter is None:
        return None
    return hashlib.sha256((reading.adapter_folder(adapter) / WEIGHTS_FILE).read_bytes()).hexdigest()[:16]


def _record(out: Path) -> dict[str, Any]:
    file = out / RECORD
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def threads_of(config: CustomizeConfig) -> int | None:
    """The threads with which the run in `out` was started on a CPU; None if there is no run yet, or an older one."""
    return None if config.overwrite else _record(config.out).get("threads")


def refuse_other_content(config: CustomizeConfig, content: dict[str, Any]) -> None:
    """Raise `UserError` if `out` holds a run that learns from something else."""
    there = content | _record(config.out)
    if there["images"] != content["images"]:
        raise _another_run(config, f"other images, captions or repeats there than in {config.images} now")
    if there.get("preserved") != content.get("preserved"):
        raise _another_run(config, "other prompts to preserve there than now")
    if not bases.same_weights(there["base"], content["base"]):
        raise _another_run(config, f"on a base with other weights than {config.base!r} has")
