"""A whole run: learn an adapter from images, and write everything into one folder."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml

from atomtune import bases, manifest
from atomtune.devices import free_memory, idle_threads, own_threads, pick_device, pick_dtype
from atomtune.errors import UserError
from atomtune.files import write_text
from atomtune.sizes import Size
from atomtune.storage import reading
from atomtune.storage.metadata import CONFIG_FILE
from atomtune.training import buckets, checkpoints, data, encoding, journal, outcome, preserving, sharding, zero
from atomtune.training.claiming import RECORD, claim, content_of, refuse_other_content, threads_of
from atomtune.training.config import CustomizeConfig
from atomtune.training.methods import refuse_other_method
from atomtune.training.optimization import refuse_what_cannot_step
from atomtune.training.recipes import configure
from atomtune.training.steps import PRECISIONS
from atomtune.training.subjects import shown_in
from atomtune.training.trainer import Trainer

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger(__name__)


def customize(images: CustomizeConfig | str | Path, **options: Any) -> dict[str, Any]:
    """Train an adapter on images of a subject and return the run's numbers, which are also in `out/summary.json`.

        atomtune.customize("photos/teapot", class_name="teapot", out="runs/teapot", steps=100)

    Takes a `CustomizeConfig`, or the images and any of its fields as keywords; then the recipe for the base applies,
    as on the command line. Writes `adapter/`, `samples/`, `samples.png`, `config.yaml`, `summary.json`,
    `checkpoints/` and `logs/` into `out`, and the list of them, `atomtune-files.txt`; other files are neither removed
    nor replaced. A stopped run continues. A finished run goes on if more `steps` or `epochs` are given, and else
    returns its numbers. Among them are `held_loss` and `held_loss_before`, the loss with and without the adapter on
    noise that was not trained on; on moji the judge's `fidelity` and `alignment` of the samples; and `next_command`.
    Raises `UserError`, and `KeyboardInterrupt` with a sentence about how to continue when Ctrl-C or SIGTERM stopped
    the training, after a checkpoint was saved.
    """
    config = images if isinstance(images, CustomizeConfig) else configure(images=images, **options)
    try:
        with own_threads():
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
    config = dataclasses.replace(config, mixed_precision=accelerator.mixed_precision)  # in place of "auto"
    processes = accelerator.num_processes
    examples = data.find_examples(config.images, config.instance_prompt)
    shown = shown_in(config, examples)
    steps = config.total_steps(len(shown.order), processes)
    bases.refuse_offload(config.offload, accelerator.device)
    if config.quantize is not None:
        bases.refuse_quantizing(config.quantize, config.base, accelerator.device)
    preserved = preserving.other_prompts(config, shown.classes)
    preserving.refuse_learnt(config, preserved, shown.subjects)
    refuse_what_cannot_step(config, accelerator.device, steps, processes)
    with accelerator.main_process_first():
        finished = claim(config, steps, processes)
    accelerator.wait_for_everyone()  # the main process writes files that the others read here
    if finished is None and accelerator.is_main_process:
        _warn_of_memory(config, accelerator, examples)  # before tens of GB are downloaded
    base = bases.BaseParts(config.base, PRECISIONS[config.mixed_precision], accelerator.device, config.quantize)
    pipe, weights = base.pipe, base.fingerprint()
    if config.init_adapter is not None:
        reading.refuse_other_base(pipe, reading.adapter_info(config.init_adapter), weights)
    resolution = bases.resolution_for(pipe, config.resolution)
    choices = buckets.sizes(resolution, bases.side_multiple(pipe)) if config.aspect_ratio_buckets else [resolution]
    pictures = [data.read_picture(file, choices, config.alpha_mask) for file in examples]
    digest = data.digest(pictures, list(examples.values()), shown.folders)
    content = content_of(config, weights, digest, [list(group) for group in preserved]) | {"processes": processes}
    if not config.overwrite:
        refuse_other_content(config, content)
    if finished is not None:
        logger.info("%s holds this run, finished", config.out)
        return _of_this_place(finished, config)
    # A run that goes on has as many, for the same bits.
    content["threads"] = threads_of(config) or idle_threads(bases.denoiser(pipe))
    if accelerator.device.type == "cpu":
        torch.set_num_threads(content["threads"])

    main = accelerator.is_main_process
    if main and config.alpha_mask and all(picture.alpha is None for picture in pictures):
        logger.warning("%s: no image has an alpha channel, so alpha_mask changes nothing", config.images)
    beside = config.preserve_share * config.batch_size * config.gradient_accumulation_steps * processes * steps
    if main and preserved and beside < 1:
        logger.warning(
            "preserve_share = %g is less than one example of other prompts in the whole run, so it is not trained on "
            "any: give more",
            config.preserve_share,
        )
    with manifest.set_aside(config.out) if config.overwrite and main else contextlib.nullcontext():
        if main:
            manifest.record(config.out, *(config.out / name for name in ("config.yaml", RECORD, journal.FILE)))
            write_text(config.out / RECORD, json.dumps(content))
            resolved = config.to_dict() | {"overwrite": False}  # else a start from this file would delete the run
            write_text(config.out / "config.yaml", yaml.safe_dump(resolved, sort_keys=False, allow_unicode=True))
        accelerator.wait_for_everyone()
        log = journal.Journal(config.out, steps) if main else None
        try:
            sizes = dict.fromkeys(Size(*picture.image.size) for picture in pictures if preserved)
            others = {size: preserving.answered(base, config, preserved, size, accelerator) for size in sizes} or None
            cache = encoding.encode(base, config, resolution, pictures, list(examples.values()), shown, accelerator)
            for sentence in cache.misfits if main else ():
                logger.warning("%s: %s", config.images, sentence)
            trainer = Trainer(config, accelerator, base, resolution, cache, others, log)
        except UserError:
            trained = (config.out / "summary.json").is_file() or checkpoints.checkpoints(config.out / "checkpoints")
            if main and not trained:
                manifest.clear(config.out)  # a refused run leaves no files
            elif log is not None:
                log.end()
            raise
    try:
        return trainer.finish()
    finally:
        if log is not None:
            log.end()


def _warn_of_memory(config: CustomizeConfig, accelerator: Accelerator, files: Iterable[Path]) -> None:
    """Say so if the run does not fit on the card, and which options make it fit."""
    free = free_memory(accelerator.device)
    if free is None or sharding.is_used(accelerator):  # what a part of the base needs is not counted
        return
    from atomtune.planning import check  # imports this package

    shapes = (data.read_image(file).size for file in files)
    if said := check.warning(config, shapes, PRECISIONS[config.mixed_precision], free):
        logger.warning("%s", said)


def _of_this_place(finished: dict[str, Any], config: CustomizeConfig) -> dict[str, Any]:
    """The numbers of a finished run, with a command that works here: the run may have been moved since."""
    if "next_command" not in finished or not (config.out / "adapter" / CONFIG_FILE).is_file():
        return finished
    subjects = reading.adapter_info(config.out).subjects
    return finished | {"next_command": outcome.next_command(config, subjects)}


def _accelerator(config: CustomizeConfig) -> Accelerator:
    """The `Accelerator` of the run, with DeepSpeed's ZeRO-3 if accelerate's environment asks for that."""
    deepspeed = zero.plugin(config)
    with zero.hidden():
        accelerator = _own_accelerator(config)
    zero.use(accelerator, deepspeed, config)
    return accelerator


def _own_accelerator(config: CustomizeConfig) -> Accelerator:
    """The `Accelerator`, with all settings of the run given, so that no environment variable changes them."""
    from accelerate import Accelerator, PartialState
    from accelerate.state import AcceleratorState
    from accelerate.utils import GradientAccumulationPlugin, ProjectConfiguration

    _refuse_unknown_tracker(config.report_to)
    device, state = pick_device(config.device), PartialState()
    if state.num_processes > 1 and device != state.device:
        raise UserError(f"each of {state.num_processes} processes has a device of its own: leave the device out.")
    if state.num_processes == 1 < int(os.environ.get("WORLD_SIZE", "1")):
        raise UserError(
            "several processes were started, but accelerate lets each train alone, into one folder: on CPUs set "
            "ACCELERATE_USE_CPU=1."
        )
    precision = config.mixed_precision
    if precision == "auto":
        precision = next(name for name, dtype in PRECISIONS.items() if dtype == pick_dtype("auto", device))
    fsdp = sharding.plugin(config, precision)
    _warn_overruled(config, precision)
    sharding.forget()
    AcceleratorState._reset_state()  # so that a second run in one process can have another precision
    state.device = device  # accelerate has no argument for the device, and always reads it here
    try:
        accelerator = Accelerator(
            mixed_precision=precision,
            gradient_accumulation_plugin=GradientAccumulationPlugin(config.gradient_accumulation_steps),
            dynamo_backend="no",
            fsdp_plugin=fsdp,
            log_with=None if config.report_to == "none" else config.report_to,
            project_config=ProjectConfiguration(str(config.out), str(config.out / "logs")),
        )
    except ValueError as error:
        if "mixed precision" not in str(error):
            raise
        raise UserError(f"{precision} cannot be used on the device {str(device)!r}: {error}") from error
    sharding.use(accelerator, fsdp)
    return accelerator


def _refuse_unknown_tracker(name: str) -> None:
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    installed = {str(tracker) for tracker in get_available_trackers()}
    if name in LOGGER_TYPE_TO_CLASS and name not in installed:
        raise UserError(f"the tracker {name!r} is not installed: install its package, or set report_to to none.")
    if name not in (*LOGGER_TYPE_TO_CLASS, "all", "none"):
        raise UserError(f"there is no tracker {name!r}: expected none, all, {', '.join(sorted(LOGGER_TYPE_TO_CLASS))}.")


def _warn_overruled(config: CustomizeConfig, precision: str) -> None:
    """Warn about settings of accelerate in the environment that the run's own options replace."""
    overruled = {  # variable: the option that replaces it, the run's value, and the value that means unset
        "ACCELERATE_MIXED_PRECISION": ("mixed_precision", precision, "no"),
        "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": (
            "gradient_accumulation_steps", str(config.gradient_accumulation_steps), "1",
        ),
        "ACCELERATE_DYNAMO_BACKEND": ("compilation", "no", "no"),
        "FSDP_ACTIVATION_CHECKPOINTING": (
            "gradient_checkpointing", str(config.gradient_checkpointing).lower(), "false",
        ),
    }  # fmt: skip
    for variable, (option, ours, unset) in overruled.items():
        if (theirs := os.environ.get(variable, unset).lower()) not in (ours, unset):
            logger.warning("%s=%s is not used: the run's %s is %s", variable, theirs, option, ours)
