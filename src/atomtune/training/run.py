"""A run as a whole: pictures in, adapter out, in a folder of its own."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from atomtune import manifest, pipelines
from atomtune.devices import pick_device, pick_dtype
from atomtune.errors import UserError
from atomtune.files import refuse_output, remove_leftovers, write_text
from atomtune.training import checkpoints, data, encoding
from atomtune.training.config import CustomizeConfig, configure
from atomtune.training.methods import refuse_other_method
from atomtune.training.trainer import PRECISIONS, Trainer

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger(__name__)

FOLDERS = ("adapter", "samples", "checkpoints", "logs", "class_pictures")
_STEPS = ["step-" + "[0-9]" * digits for digits in (6, 7)]
NAMES = (
    "config.yaml", "summary.json", "logs/pictures.json", "class_pictures/[0-9][0-9][0-9][0-9].png",
    *(f"adapter/{name}" for name in pipelines.ADAPTER_FILES),
    *(f"checkpoints/{step}/{name}" for step in _STEPS for name in checkpoints.FILES),
    *(f"samples/{step}-{number}.png" for step in _STEPS for number in ("[0-9]", "[0-9][0-9]")),
)  # fmt: skip
"""Patterns of all that a run writes, but for what its tracker adds to the logs."""


def customize(pictures: CustomizeConfig | str | Path, **options: Any) -> dict[str, Any]:
    """Train an adapter on pictures of one thing and return the run's numbers, which are also in `out/summary.json`.

        atomtune.customize("photos/teapot", class_name="teapot", out="runs/teapot", steps=100)

    Takes a `CustomizeConfig`, or the pictures and any of its fields as keywords; then the recipe for the base applies,
    as on the command line. Writes `adapter/`, `samples/`, `config.yaml`, `summary.json`, `checkpoints/` and `logs/`
    into `out`, and the list of them, `atomtune-files.txt`; what is not in the list is neither removed nor replaced.
    Where the same run was stopped it continues; where it has finished it returns its numbers. Raises `UserError`.
    """
    config = pictures if isinstance(pictures, CustomizeConfig) else configure(pictures=pictures, **options)
    try:
        return _customize(config)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise UserError(
                f"no room left to write in {config.out} ({error.strerror}): free some and start again."
            ) from error
        raise


def _customize(config: CustomizeConfig) -> dict[str, Any]:
    if config.init_adapter is not None:
        refuse_other_method(config, config.init_adapter)
    accelerator = _accelerator(config)
    config = dataclasses.replace(config, mixed_precision=accelerator.mixed_precision)  # what "auto" came to
    examples = data.find_examples(config.pictures, config.instance_prompt)
    with accelerator.main_process_first():
        finished = _claim(config)
    accelerator.wait_for_everyone()  # before the main process writes what the others look at
    pipe = pipelines.load_base(config.base, PRECISIONS[config.mixed_precision])  # its parts go to the device to work
    if config.init_adapter is not None:
        pipelines.refuse_other_base(pipe, config.init_adapter)
    resolution = pipelines.resolution_for(pipe, config.resolution)
    pictures = [data.square(data.read_picture(file), resolution) for file in examples]
    identity = data.digest(pictures, list(examples.values()))
    if not config.overwrite:
        _same_pictures(config, identity)
    if finished is not None:
        logger.info("%s holds this run, finished", config.out)
        return finished

    autoencoder: Any = type(getattr(pipe, "vae", None))
    main = accelerator.is_main_process
    with manifest.set_aside(config.out) if config.overwrite and main else contextlib.nullcontext():
        if main:
            manifest.record(config.out, config.out / "config.yaml", config.out / "logs" / "pictures.json")
            settings = yaml.safe_dump(config.to_dict(), sort_keys=False, allow_unicode=True)
            write_text(config.out / "config.yaml", settings)
            write_text(config.out / "logs" / "pictures.json", json.dumps({"digest": identity}))
        accelerator.wait_for_everyone()
        try:
            cache = encoding.encode(pipe, config, resolution, pictures, list(examples.values()), accelerator)
            trainer = Trainer(config, accelerator, pipe, autoencoder, resolution, cache)
        except UserError:
            trained = (config.out / "summary.json").is_file() or checkpoints.checkpoints(config.out / "checkpoints")
            if main and not trained:
                manifest.clear(config.out)  # refused options leave nothing behind
            raise
    return trainer.finish()


def _claim(config: CustomizeConfig) -> dict[str, Any] | None:
    """See that `out` can be this run's: return the numbers if it has finished, raise `UserError` if it is another's."""
    refuse_output(config.out, config.pictures, *([] if config.base == pipelines.MOJI else [config.base]))
    if config.init_adapter is not None:
        for name in FOLDERS:
            refuse_output(config.out / name, pipelines.adapter_folder(config.init_adapter))
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
    ignored = {"out": None, "overwrite": None, "device": None}
    defaults = CustomizeConfig(config.pictures, class_name=config.class_name, out=config.out)
    there = (
        defaults.to_dict() | yaml.safe_load(written.read_text(encoding="utf-8")) | ignored
    )  # it may be older than an option
    here = config.to_dict() | ignored
    if different := [name for name in here if here[name] != there.get(name)]:
        changes = ", ".join(f"{name} {there.get(name)!r} there and {here[name]!r} now" for name in different)
        raise UserError(f"{config.out} holds another run ({changes}): choose another folder, or pass overwrite.")
    summary = config.out / "summary.json"
    if summary.is_file():
        return json.loads(summary.read_text(encoding="utf-8"))
    if unlisted:
        raise UserError(refusal)
    return None


def _is_run(file: Path) -> bool:
    """Whether this is the config.yaml of a run."""
    try:
        options = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return False
    return isinstance(options, dict) and {"pictures", "class_name", "out"} <= options.keys()


def _same_pictures(config: CustomizeConfig, identity: str) -> None:
    file = config.out / "logs" / "pictures.json"
    if file.is_file() and json.loads(file.read_text(encoding="utf-8"))["digest"] != identity:
        raise UserError(
            f"{config.out} holds a run on other pictures or captions: choose another folder, or pass overwrite."
        )


def _accelerator(config: CustomizeConfig) -> Accelerator:
    from accelerate import Accelerator, PartialState
    from accelerate.state import AcceleratorState
    from accelerate.utils import ProjectConfiguration

    device, state = pick_device(config.device), PartialState()
    if state.num_processes > 1 and device != state.device:
        raise UserError(f"each of {state.num_processes} processes takes a device of its own: leave the device out.")
    precision = config.mixed_precision
    if precision == "auto":
        precision = next(name for name, dtype in PRECISIONS.items() if dtype == pick_dtype("auto", device))
    AcceleratorState._reset_state()  # or a second run in one process could not have another precision
    state.device = device  # accelerate has no argument for it, and reads it here again and again
    try:
        return Accelerator(
            mixed_precision=precision,
            gradient_accumulation_steps=config.gradient_accumulation_steps,
            log_with=None if config.report_to == "none" else config.report_to,
            project_config=ProjectConfiguration(str(config.out), str(config.out / "logs")),
        )
    except ValueError as error:
        if "mixed precision" not in str(error):
            raise
        raise UserError(f"{precision} does not go on the device {str(device)!r}: {error}") from error
