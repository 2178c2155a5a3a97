"""The optimizer and the schedule of its learning rate, by name."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from atomtune.errors import UserError
from atomtune.method.sigma import SIGMAS
from atomtune.training.config import CustomizeConfig


def make_optimizer(config: CustomizeConfig, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """The run's optimizer of `parameters`. Raises `UserError` if there is none of that name or it refuses an option."""
    if config.optimizer == "CAME":
        from pytorch_optimizer import CAME as kind
    else:
        kind = getattr(torch.optim, config.optimizer, None)
        if not (isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)):
            raise UserError(
                f"there is no optimizer {config.optimizer!r}: expected AdamW, CAME or a class of torch.optim."
            )
    parameters, options = [*parameters], config.optimizer_options
    if config.optimizer == "AdamW" and _can_fuse(config, parameters):
        options = {"fused": True} | options
    try:
        return kind(parameters, lr=config.learning_rate, **options)  # pyright: ignore
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{config.optimizer} does not take {config.optimizer_options}: {error}.") from error


def _can_fuse(config: CustomizeConfig, parameters: Iterable[torch.nn.Parameter]) -> bool:
    """Whether AdamW can take all its steps in one kernel. With fp16 it would pass over overflows without accelerate
    knowing."""
    there = {parameter.device.type for parameter in parameters} <= {"cpu", "cuda"}  # and not in a plan
    other_kernels = {"foreach", "differentiable"} & config.optimizer_options.keys()
    return there and config.mixed_precision != "fp16" and not other_kernels


def make_schedule(
    config: CustomizeConfig, optimizer: torch.optim.Optimizer, steps: int, processes: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """The schedule over `steps` optimizer steps; accelerate advances it once for each process. Raises `UserError`."""
    from diffusers.optimization import get_scheduler

    try:
        return get_scheduler(
            config.lr_scheduler,
            optimizer,
            num_warmup_steps=config.lr_warmup_steps * processes,
            num_training_steps=steps * processes,
        )
    except ValueError as error:
        raise UserError(f"lr_scheduler {config.lr_scheduler}: {error}.") from error


def refuse_what_cannot_step(config: CustomizeConfig, device: torch.device, steps: int, processes: int) -> None:
    """Raise `UserError` unless optimizer and schedule can make a step. They are tried on a small weight, before a base
    is opened: an optimizer may need a closure (LBFGS), sparse gradients (SparseAdam) or only matrices (Muon)."""
    vectors = config.method == "dora" or (config.method == "atoms" and SIGMAS[config.activation].learned)
    shapes = [(2, 2), (2,)] if vectors else [(2, 2)]
    parameters = [torch.nn.Parameter(torch.ones(shape, device=device)) for shape in shapes]
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer = make_optimizer(config, parameters)
    make_schedule(config, optimizer, steps, processes)
    if config.optimizer in ("AdamW", "CAME") and not config.optimizer_options:
        return  # known to step
    try:
        optimizer.step()
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise UserError(
            f"{config.optimizer} with the options {config.optimizer_options} cannot train an adapter "
            f"({' '.join(str(error).split())}): choose another, such as AdamW or CAME."
        ) from error
