"""The PEFT configuration of each method, on the same modules."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from atomtune.errors import UserError
from atomtune.storage import reading
from atomtune.training.config import CustomizeConfig

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel

    from atomtune.adapters import AtomConfig


def adapt(denoiser: torch.nn.Module, config: CustomizeConfig) -> PeftModel:
    """The denoiser with a fresh adapter; everything else is frozen. Its random start follows from `config.seed`."""
    from peft import get_peft_model

    from atomtune.adapters.guard import guard_quantized

    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        try:
            model = get_peft_model(denoiser, peft_config(denoiser, config))
        except ValueError as error:
            raise UserError(
                f"{config.method} does not fit {', '.join(config.target_modules)} of this base: {error}"
            ) from error
    guard_quantized(model)
    return model


def targets(denoiser: torch.nn.Module, config: CustomizeConfig) -> list[str] | str:
    """The modules that atoms adapt, as `target_modules` names them: those of the run or, if it has the default, those
    of the preset for the denoiser's class."""
    from atomtune.adapters.targets import preset_targets

    if config.target_modules == CustomizeConfig.target_modules:
        with contextlib.suppress(UserError):  # there is no preset
            return preset_targets(denoiser)
    return list(config.target_modules)


def attention_of(denoiser: torch.nn.Module, targets: list[str] | str) -> list[str]:
    """The attention modules that the targets are, or are in, by the end of their names."""
    import peft
    from peft.tuners.tuners_utils import check_target_module_exists

    from atomtune.adapters.targets import is_linear

    config, found = peft.LoraConfig(target_modules=targets), {}
    for name, module in denoiser.named_modules():
        if check_target_module_exists(config, name):
            path = name.split(".")
            found[path[-2] if is_linear(module) and len(path) > 1 else path[-1]] = True
    return list(found)


def refuse_other_method(config: CustomizeConfig, start: Path) -> None:
    """Raise `UserError` if the adapter in `start` was made by another method than the run's."""
    kinds = {"ATOMS": ("atoms",), "LORA": ("lora", "dora"), "OFT": ("oft",)}
    kind = reading.adapter_info(start).kind
    if config.method not in kinds.get(kind, ()):
        raise UserError(
            f"the adapter in {start} is {kind}, and the run is of method {config.method}: give the method of the "
            "adapter."
        )


def peft_config(denoiser: torch.nn.Module, config: CustomizeConfig) -> PeftConfig:
    """The PEFT configuration of the run's adapter. LoRA's α is its rank, as in diffusers' DreamBooth scripts."""
    import peft

    layers = None if config.layers_to_transform is None else list(config.layers_to_transform)
    if config.method == "atoms":
        from atomtune.adapters import AtomConfig

        atoms = AtomConfig(
            target_modules=targets(denoiser, config),
            num_atoms=config.num_atoms,
            activation=config.activation,
            density=config.density,
            threshold=config.threshold,
            threshold_units=config.threshold_units,
            unit_encoder=config.unit_encoder,
            floor=config.floor,
            mix_first=config.mix_first,
            layers_to_transform=layers,
        )
        if config.total_atoms is not None:
            atoms.num_atoms_pattern = share_out(config.total_atoms, denoiser, atoms)
        return atoms
    given = config.target_modules
    if given == CustomizeConfig.target_modules:
        given = attention_of(denoiser, targets(denoiser, config)) or given
    target = linear_layers(denoiser, given)
    if config.method == "oft":
        return peft.OFTConfig(r=config.oft_blocks, oft_block_size=0, target_modules=target, layers_to_transform=layers)
    return peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.rank,
        use_dora=config.method == "dora",
        target_modules=target,
        layers_to_transform=layers,
    )


def share_out(total: int, model: torch.nn.Module, config: AtomConfig) -> dict[str, int]:
    """M of each layer that `config` adapts, so that together they have `total` atoms, or one each if there are more."""
    from peft.tuners.tuners_utils import check_target_module_exists

    names = [name for name, _ in model.named_modules() if check_target_module_exists(config, name)]
    ends = [total * number // len(names) for number in range(len(names) + 1)]
    return {name: max(1, end - start) for name, start, end in zip(names, ends, ends[1:])}


def linear_layers(model: torch.nn.Module, inside: Sequence[str]) -> list[str]:
    """The linear layers at or inside these modules, by the end of their names: "attn1" gives "attn1.to_q", ...; by
    their whole names where others that are not linear end so too."""
    found, modules = set(), dict(model.named_modules())
    for name, module in model.named_modules():
        for target in inside:
            if name == target or name.endswith("." + target):
                for inner, layer in module.named_modules():
                    if isinstance(layer, torch.nn.Linear):
                        found.add(f"{target}.{inner}" if inner else target)
    if not found:
        raise UserError(f"this base has no linear layer in {', '.join(inside)}: see the names in its denoiser.")
    targets = []
    for end in found:
        names = [name for name in modules if f".{name}".endswith(f".{end}")]
        linear = [name for name in names if isinstance(modules[name], torch.nn.Linear)]
        targets += [end] if linear == names else linear
    return sorted(targets)
