"""DeepSpeed: ZeRO-3 keeps a part of the frozen base in each process, and the adapter whole in each, as FSDP2 does here.

Stages 1 and 2 share out gradients and what the optimizer keeps, which are megabytes for an adapter: there a run trains
as it does without DeepSpeed. accelerate would use DeepSpeed's engine, which steps inside `backward`. A run does more
between the two: it averages statistics, keeps codes and refuses a step that is not a number. So of ZeRO-3 it takes the
partitioning of weights alone, and the loop, the optimizer and the checkpoints are those of any other run.
"""

# pyright: reportMissingImports=false
# DeepSpeed is installed by those who want it.
from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from atomtune.errors import UserError

if TYPE_CHECKING:
    from accelerate import Accelerator
    from accelerate.utils import DeepSpeedPlugin

    from atomtune.training.config import CustomizeConfig

logger = logging.getLogger(__name__)

ASKED = "ACCELERATE_USE_DEEPSPEED"
SETTINGS = (
    "overlap_comm",
    "stage3_prefetch_bucket_size",
    "stage3_max_reuse_distance",
    "stage3_max_live_parameters",
    "stage3_param_persistence_threshold",
    "stage3_model_persistence_threshold",
)
"""Those of `zero_optimization` that say when weights are gathered and dropped, and so change no result."""


def is_set(variable: str) -> bool:
    """Whether a variable of the environment says yes."""
    return os.environ.get(variable, "false").lower() in ("true", "1", "yes")


@contextlib.contextmanager
def hidden() -> Iterator[None]:
    """Hide from accelerate that its environment asks for DeepSpeed, for as long as an accelerator is made."""
    value = os.environ.pop(ASKED, None)
    try:
        yield
    finally:
        if value is not None:
            os.environ[ASKED] = value


def plugin(config: CustomizeConfig) -> DeepSpeedPlugin | None:
    """The settings of DeepSpeed in accelerate's environment, or None. Raises `UserError` for what a run with ZeRO-3
    cannot do."""
    if not is_set(ASKED):
        return None
    from accelerate.utils import DeepSpeedPlugin

    try:
        asked = DeepSpeedPlugin()
    except ValueError as error:
        raise UserError(f"accelerate cannot use the settings of DeepSpeed in its environment: {error}.") from error
    if int(asked.zero_stage) < 3:
        return asked
    if find_spec("deepspeed") is None:
        raise UserError("ZeRO stage 3 needs DeepSpeed, which is not installed: pip install deepspeed.")
    if asked.offload_param_device not in (None, "none"):
        raise UserError(
            f"offload_param_device={asked.offload_param_device} asks DeepSpeed to keep the shards off the card, which "
            "was never run with an adapter: start without it, on more cards."
        )
    for option in ("quantize", "offload"):
        if getattr(config, option) is not None:
            raise UserError(
                f"{option} was never run with ZeRO-3, which already splits the base over cards: leave it out."
            )
    return asked


def use(accelerator: Accelerator, asked: DeepSpeedPlugin | None, config: CustomizeConfig) -> None:
    """Let the run shard with ZeRO-3, if that is asked for and there are several processes. Else say why not."""
    if asked is None:
        return
    if accelerator.is_main_process and (names := _overruled(accelerator, asked, config)):
        logger.warning("of DeepSpeed's settings these are not used, because the run has its own: %s", ", ".join(names))
    if int(asked.zero_stage) < 3:
        if accelerator.is_main_process:
            logger.warning(
                "ZeRO stage %s shares out gradients and what the optimizer keeps, which are small for an adapter: the "
                "run trains without DeepSpeed, with the same results; stage 3 shards the base",
                asked.zero_stage,
            )
    elif accelerator.num_processes == 1:
        logger.warning("%s is not used: the one process of this run has the whole base", ASKED)
    else:
        accelerator.state.deepspeed_plugins = asked


def is_used(accelerator: Accelerator) -> bool:
    """Whether the base is sharded with ZeRO-3."""
    return accelerator.state.deepspeed_plugins is not None


def _overruled(accelerator: Accelerator, asked: DeepSpeedPlugin, config: CustomizeConfig) -> list[str]:
    """The settings that would have another value than the run's own, or no meaning here."""
    precision, processes = accelerator.mixed_precision, accelerator.num_processes
    each = config.gradient_accumulation_steps * config.batch_size
    ours = {
        "zero_optimization": asked.deepspeed_config["zero_optimization"],  # below
        "steps_per_print": float("inf"),  # accelerate's
        "gradient_accumulation_steps": config.gradient_accumulation_steps,
        "gradient_clipping": config.max_grad_norm,
        "train_micro_batch_size_per_gpu": config.batch_size,
        "train_batch_size": each * processes,
    }
    found = [name for name, value in asked.deepspeed_config.items() if value not in ("auto", ours.get(name))]
    # a precision is a group of settings
    for name in ("fp16", "bf16"):
        enabled = asked.deepspeed_config.get(name, {}).get("enabled", False)
        if name in found and enabled in ("auto", precision == name):
            found.remove(name)
    if "gradient_accumulation_steps" in found and asked.deepspeed_config["gradient_accumulation_steps"] == 1:
        found.remove("gradient_accumulation_steps")  # accelerate's, if nobody has set it
    zero = asked.deepspeed_config["zero_optimization"]
    found += [
        name
        for name, value in zero.items()
        if name.startswith("zero_") and value not in (False, "auto") and (name, value) != ("zero_hpz_partition_size", 1)
    ]
    if asked.offload_optimizer_device not in (None, "none"):
        found.append("offload_optimizer")
    return found


def partition(accelerator: Accelerator, model: nn.Module) -> None:
    """Keep this process's part of each frozen tensor, on the device; hooks gather the whole for as long as a layer
    needs it. What trains stays whole, and so does the base's first tensor, by which it is recognised."""
    os.environ.setdefault("DS_ACCELERATOR", accelerator.device.type)
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    import deepspeed
    from deepspeed.runtime.zero import parameter_offload as zero3
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from deepspeed.runtime.zero.linear import zero3_linear_wrap
    from deepspeed.utils.timer import NoopTimer
    from deepspeed.utils.z3_leaf_module import set_z3_leaf_module

    # On CPUs it would be compiled first, and a process that is killed then leaves a lock that all others wait at.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    warnings.filterwarnings("ignore", ".*all_gather_into_tensor.* is deprecated", FutureWarning)  # what it gathers with
    if not deepspeed.comm.is_initialized():
        deepspeed.init_distributed(accelerator.state.backend)
    asked: Any = accelerator.state.deepspeed_plugins
    own = asked.deepspeed_config["zero_optimization"].items()
    chosen = {name: value for name, value in own if name in SETTINGS and value != "auto"}
    chosen |= {"stage": 3, "memory_efficient_linear": False}  # which replaces torch's function for the whole program
    settings = DeepSpeedZeroConfig(**chosen)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    whole: list[tuple[Any, Any]] = [
        (each, each.data.to(accelerator.device)) for each in (next(model.parameters()), *trained)
    ]
    for buffer in model.buffers():
        buffer.data = buffer.data.to(accelerator.device)
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            set_z3_leaf_module(module, True)  # gathered together: DoRA reads the weight of the layer inside
        elif type(module) is nn.Linear and not module.weight.requires_grad:
            vars(module)["forward"] = partial(_linear, module, zero3_linear_wrap)
    zero3.DeepSpeedZeRoOffload(
        model,
        timers=NoopTimer(),
        ds_config={"train_micro_batch_size_per_gpu": 1, "zero_optimization": chosen},
        overlap_comm=bool(settings.overlap_comm),
        prefetch_bucket_size=settings.prefetch_bucket_size,
        max_reuse_distance=settings.max_reuse_distance,
        max_live_parameters=settings.max_live_parameters,
        param_persistence_threshold=settings.param_persistence_threshold,
        model_persistence_threshold=settings.model_persistence_threshold,
    )
    zero3.FWD_MODULE_STACK.clear()  # which would keep the model for as long as the program runs
    for parameter, data in whole:
        parameter.data, parameter.ds_status = data, zero3.ZeroParamStatus.AVAILABLE
        parameter.partition = lambda *_, **__: None  # stays as it is when a layer no longer needs it


def _linear(module: nn.Linear, function: Any, tokens: Any) -> Any:
    """What the layer does, with DeepSpeed's function: torch's own keeps the gathered weight until the backward pass.
    As a matrix, because it adds the bias to any other shape after rounding."""
    found = function(tokens.reshape(-1, module.in_features), module.weight, module.bias)
    return found.view(*tokens.shape[:-1], module.out_features)
