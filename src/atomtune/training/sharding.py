"""FSDP2: the frozen base in shards, a part of it in each process, and the adapter whole in each.

A base has gigabytes and its adapter megabytes. So what trains is not sharded: checkpoints, statistics and the
optimizer are those of a run without shards, and a run may go on with or without them. The gradients of the adapter,
which FSDP2 then leaves alone, are averaged over processes here.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from atomtune.errors import UserError
from atomtune.training import zero
from atomtune.training.zero import is_set

if TYPE_CHECKING:
    from accelerate import Accelerator
    from accelerate.utils import FullyShardedDataParallelPlugin

    from atomtune.training.config import CustomizeConfig

logger = logging.getLogger(__name__)

REFUSED = {
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism config",
}
WRAPPED_BY = "FSDP_AUTO_WRAP_POLICY", "TRANSFORMER_BASED_WRAP"
"""The variable that says what is gathered together, and its value if there is none: a block of the base at a time."""

UNSHARDED: dict[str, Any] = {}
"""What accelerate's state said before `use` changed it."""


def plugin(config: CustomizeConfig, precision: str) -> FullyShardedDataParallelPlugin | None:
    """accelerate's plugin of FSDP2 if its environment asks for that, or None. Raises `UserError` if it asks for another
    way to split a model, or for what a run with shards cannot do."""
    for variable, what in REFUSED.items():
        if is_set(variable):
            raise UserError(
                f"{variable} asks for {what}, which does not train an adapter here: start it without, and where the "
                "base does not fit on one card with `accelerate launch --use_fsdp --fsdp_version 2`."
            )
    if not is_set("ACCELERATE_USE_FSDP"):
        return None
    if os.environ.get("FSDP_VERSION") != "2":
        raise UserError("ACCELERATE_USE_FSDP asks for FSDP 1, and here a base is sharded by FSDP2: --fsdp_version 2.")
    if is_set("FSDP_OFFLOAD_PARAMS"):
        raise UserError(
            "FSDP_OFFLOAD_PARAMS asks to keep the shards in the memory of the CPU, which was never run with an "
            "adapter: start without it, on more cards."
        )
    if precision == "fp16":
        raise UserError(
            "with FSDP2 the precision cannot be fp16, because accelerate unscales its gradients twice, which torch "
            "refuses: set mixed_precision to bf16 or no."
        )
    for option in ("quantize", "offload"):
        if getattr(config, option) is not None:
            raise UserError(
                f"{option} was never run with FSDP2, which already splits the base over cards: leave it out."
            )
    from accelerate.utils import FullyShardedDataParallelPlugin
    from torch.distributed.fsdp import MixedPrecisionPolicy

    try:
        return FullyShardedDataParallelPlugin(
            fsdp_version=2,
            auto_wrap_policy=os.environ.get(*WRAPPED_BY),  # pyright: ignore[reportArgumentType]
            # The base has the precision of the run already, and timesteps in bf16 would be others.
            mixed_precision_policy=MixedPrecisionPolicy(cast_forward_inputs=False),
            activation_checkpointing=False,  # which would rename the layers; the run's own option does it
            activation_checkpointing_offload=False,
            cpu_ram_efficient_loading=False,  # which takes every part for sharded, also the text encoders
        )
    except ValueError as error:
        raise UserError(f"accelerate cannot use the settings of FSDP in its environment: {error}.") from error


def forget() -> None:
    """Undo `use`, which an earlier run in this program may have called, before there is the next accelerator."""
    from accelerate import PartialState

    vars(PartialState()).update(UNSHARDED)


def use(accelerator: Accelerator, fsdp: FullyShardedDataParallelPlugin | None) -> None:
    """Let the accelerator shard, if there are several processes. By itself it does so on cards alone, and torch on CPUs
    too."""
    from accelerate import PartialState
    from accelerate.utils import DistributedType

    if fsdp is None:
        return
    if accelerator.num_processes == 1 and not accelerator.is_fsdp2:
        logger.warning("ACCELERATE_USE_FSDP is not used: the one process of this run has the whole base")
    else:
        UNSHARDED.setdefault("distributed_type", PartialState().distributed_type)
        PartialState().distributed_type = accelerator.state.distributed_type = DistributedType.FSDP
        accelerator.state.fsdp_plugin = fsdp


def is_used(accelerator: Accelerator) -> bool:
    """Whether each process has a part of the base: by FSDP2 or by DeepSpeed."""
    return accelerator.is_fsdp2 or zero.is_used(accelerator)


def choose_shards(accelerator: Accelerator, model: nn.Module) -> None:
    """Before `accelerator.prepare`: shard what is frozen, block by block, and move the rest to the device. The base's
    first tensor stays whole too, because the base is recognised by it (`bases.fingerprint`). Raises `UserError` if the
    blocks are not known."""
    fsdp: Any = accelerator.state.fsdp_plugin
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    # Not the modules that hold them: a first tensor of the base itself would keep all of it whole.
    fsdp.ignored_modules = [nn.ParameterList([next(model.parameters()), *trained]).to(accelerator.device)]
    there = {type(module).__name__ for module in model.modules()}
    blocks = fsdp.transformer_cls_names_to_wrap or getattr(model, "_no_split_modules", None) or []
    fsdp.transformer_cls_names_to_wrap = [name for name in blocks if name in there]
    if os.environ.get(*WRAPPED_BY) == WRAPPED_BY[1] and not fsdp.transformer_cls_names_to_wrap:
        raise UserError(
            "FSDP2 shards a base block by block, and the blocks of this one are not known: set "
            "FSDP_TRANSFORMER_CLS_TO_WRAP (--fsdp_transformer_layer_cls_to_wrap) to the class of its blocks."
        )


def reshard(model: nn.Module) -> None:
    """Drop all gathered weights, in every process, before one of them reads the model's `state_dict`: that drops those
    of its process alone, and the next forward pass would wait for the others to gather them too."""
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


@torch.no_grad()
def average_gradients(parameters: Sequence[nn.Parameter], mean: Callable[[Tensor], Tensor]) -> None:
    """Replace the gradients of the adapter by their `mean` over processes, in one message."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    vector_to_parameters(mean(parameters_to_vector(gradients)), gradients)
