"""A run as a whole: pictures in, adapter out, in a folder of its own."""

from __future__ import annotations

import dataclasses
import errno
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from atomtune import pipelines
from atomtune.devices import pick_device, pick_dtype
from atomtune.errors import UserError
from atomtune.files import remove_folder, remove_leftovers, write_text
from atomtune.training import checkpoints, data, encoding
from atomtune.training.config import CustomizeConfig, configure
from atomtune.training.methods import refuse_other_method
from atomtune.training.trainer import PRECISIONS, Trainer

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger(__name__)

FOLDERS = ("adapter", "samples", "checkpoints", "logs", "class_pictures")


def customize(pictures: CustomizeConfig | str | Path, **options: Any) -> dict[str, Any]:
    """Train an adapter on pictures of one thing and return the run's numbers, which are also in `out/summary.json`.

        atomtune.customize("photos/teapot", class_name="teapot", out="runs/teapot", steps=100)

    Takes a `CustomizeConfig`, or the pictures and any of its fields as keywords; then the recipe for the base applies,
    as on the command line. Writes `adapter/`, `samples/`, `config.yaml`, `summary.json`, `checkpoints/` and `logs/`
    into `out`. Where the same run was stopped it continues; where it has finished it returns its numbers. Raises
    `UserError`.
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
    pipe = pipelines.load_base(config.base, PRECISIONS[config.mixed_precision])  # its parts go to the device to work
    if config.init_adapter is not None:
        pipelines.refuse_other_base(pipe, config.init_adapter)
    resolution = pipelines.resolution_for(pipe, config.resolution)
    pictures = [data.square(data.read_picture(file), resolution) for file in examples]
    identity = data.digest(pictures, list(examples.values()))
    _same_pictures(config, identity)
    if finished is not None:
        logger.info("%s holds this run, finished", config.out)
        return finished

    autoencoder = type(pipe.vae)
    if accelerator.is_main_process:
        write_text(config.out / "config.yaml", yaml.safe_dump(config.to_dict(), sort_keys=False, allow_unicode=True))
        write_text(config.out / "logs" / "pictures.json", json.dumps({"digest": identity}))
    try:
        cache = encoding.encode(pipe, config, resolution, pictures, list(examples.values()), accelerator)
        trainer = Trainer(config, accelerator, pipe, autoencoder, resolution, cache)
    except UserError:
        if accelerator.is_main_process and not checkpoints.checkpoints(config.out / "checkpoints"):
            _clear(config.out)  # refused options leave nothing behind
        raise
    return trainer.finish()


def _claim(config: CustomizeConfig) -> dict[str, Any] | None:
    """Make `out` this run's: return the numbers if it has finished, raise `UserError` if it is another run's."""
    if config.overwrite:
        _clear(config.out)
    for folder in (config.out, *(config.out / name for name in FOLDERS)):
        remove_leftovers(folder)
    written = config.out / "config.yaml"
    if not written.is_file():
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
    return json.loads(summary.read_text(encoding="utf-8")) if summary.is_file() else None


def _clear(out: Path) -> None:
    """Remove what a run wrote, and nothing else."""
    for name in ("summary.json", "config.yaml"):
        (out / name).unlink(missing_ok=True)
    for name in FOLDERS:
        remove_folder(out / name)


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
