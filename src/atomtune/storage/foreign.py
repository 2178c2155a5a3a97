"""Adapter files from somebody else: what they hold is checked before memory is taken or anything of them runs.

Weights are safetensors, never pickle, so that reading them runs no code; what else PEFT's configuration could make it
read or import is refused. Sizes are compared with the header of the weights, which is as long as the file is.
"""

from __future__ import annotations

import importlib
import math
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from atomtune.errors import UserError
from atomtune.parsing import parse_json

HEADER_LIMIT, CONFIG_LIMIT = 100_000_000, 10_000_000
"""The largest headers, as safetensors has it, and configurations in bytes."""
OUTSIDE = (
    "megatron_config", "megatron_core", "loftq_config", "eva_config", "corda_config", "lora_ga_config",
    "layer_replication", "prompt_tuning_init_state_dict_path",
)  # fmt: skip
"""Fields of PEFT's configurations that make it import modules, read other files, or change the base."""
DEFAULTS = {"megatron_core": "megatron.core"}  # what PEFT writes, and does not use without the others
SIZES = ("r", "rank", "num_atoms", "num_virtual_tokens", "oft_block_size", "boft_block_size", "boft_block_num")
SIZES_OF_LAYERS = ("rank_pattern", "num_atoms_pattern")
PATTERNS = ("target_modules", "exclude_modules", "modules_to_save", "layers_pattern")
OTHER_METHODS = (
    "PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "ADAPTION_PROMPT", "CPT", "CARTRIDGE",
    "XLORA", "POLY",
)  # fmt: skip
"""PEFT's methods that change the inputs of language models, read further adapters, or ask for a task in every call."""
REPEATS = 4
"""Open repeats, such as `.*`, that one path through a regular expression may have: the time that a text takes grows
with its length to this power."""


def read_config(file: Path) -> dict[str, Any]:
    """PEFT's `adapter_config.json`. Raises `UserError` if it cannot be read, or would run or read something else."""
    try:
        if file.stat().st_size > CONFIG_LIMIT:
            raise ValueError(f"it has more than {CONFIG_LIMIT:,} bytes")
        config = parse_json(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file} is not valid JSON ({error}): save the adapter again.") from error
    if not isinstance(config, dict):
        return {}
    for name in OUTSIDE:
        if config.get(name) and config[name] != DEFAULTS.get(name):
            raise UserError(
                f"{file} has {name}, which makes PEFT import, read or change something outside this folder: remove it "
                "if you trust whom it is from."
            )
    base = config.get("base_model_name_or_path")
    if not isinstance(base, str | None):
        raise UserError(f"base_model_name_or_path in {file} must be a name, got {base!r:.100}: save the adapter again.")
    for pattern in _patterns(config):
        if reason := _slow(pattern):
            raise UserError(f"{file} has the regular expression {pattern!r:.100}, which {reason}: write the names out.")
    return config


def is_pickle(file: Path) -> bool:
    """Whether a file starts as those of torch.save and pickle do. Raises `OSError`."""
    with file.open("rb") as opened:
        start = opened.read(9)
    # The first eight bytes of safetensors are a number, so they may be the same by chance; then its header begins.
    return start[8:] != b"{" and re.match(rb"PK\x03\x04|\x80[\x02-\x05]", start) is not None


def read_header(file: Path) -> tuple[dict[str, list[int]], dict[str, str]]:
    """The shape of every tensor of a safetensors file, and its metadata, read without the weights.

    Raises `OSError` and `ValueError`; safetensors itself compares the header with the length of the file.
    """
    if is_pickle(file):
        raise ValueError("it is a pickle, which may run any code when it is read; save it as .safetensors")
    with file.open("rb") as opened:
        start = opened.read(8)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or length > min(HEADER_LIMIT, file.stat().st_size - 8):
            raise ValueError("its header is longer than the file")
        header = parse_json(opened.read(length))
    if not isinstance(header, dict):
        raise ValueError("its header is no JSON object")
    metadata = header.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("its metadata is no JSON object of texts")
    entries = header.items()
    shapes: dict[str, Any] = {name: one.get("shape") if isinstance(one, dict) else None for name, one in entries}
    for name, shape in shapes.items():
        if not isinstance(shape, list) or not all(isinstance(side, int) and side >= 0 for side in shape):
            raise ValueError(f"the shape of {name!r:.100} is not a list of whole numbers")
    return shapes, metadata


def refuse_other_sizes(folder: Path, config: dict[str, Any], shapes: dict[str, list[int]]) -> None:
    """Raise `UserError` if the configuration asks for larger layers than the weights have, which PEFT would make before
    it reads the weights."""
    sizes = [("num_atoms", shape[0]) for key, shape in shapes.items() if key.endswith(".atoms_id") and shape]
    largest = max((side for shape in shapes.values() if math.prod(shape) for side in shape), default=0)
    asked = {name: config[name] for name in SIZES if isinstance(config.get(name), int | float)}
    for name in SIZES_OF_LAYERS:
        of_layers = config.get(name)
        if isinstance(of_layers, dict):
            asked |= {f"{name} of {layer!r:.100}": size for layer, size in of_layers.items()}
    for name, size in asked.items():
        if not isinstance(size, int | float) or not size <= max(largest, *(each for _, each in sizes), 0):
            raise UserError(
                f"the configuration in {str(folder)!r} asks for {name} = {size!r:.50}, and the largest size in its "
                f"weights is {largest:,}: save the adapter again."
            )


def refuse_bad_numbers(file: Path) -> None:
    """Raise `UserError` if a tensor of a safetensors file holds NaN or infinity."""
    from safetensors import safe_open

    with safe_open(file, "pt") as tensors:
        for name in tensors.keys():  # noqa: SIM118  it is no dict
            tensor = tensors.get_tensor(name)
            if tensor.is_complex() or not bool(tensor.float().isfinite().all()):
                raise UserError(
                    f"{name!r:.100} in {str(file)!r} holds what is not a finite number: the training that wrote it has "
                    "diverged, so take an earlier checkpoint."
                )


def _patterns(config: dict[str, Any]) -> Iterable[str]:
    """What PEFT takes for regular expressions."""
    for name in PATTERNS:
        values = config.get(name)
        yield from (each for each in (values if isinstance(values, list) else [values]) if isinstance(each, str))
    for name in ("rank_pattern", "alpha_pattern", "num_atoms_pattern"):
        yield from (config[name] if isinstance(config.get(name), dict) else ())


_parser: Any = importlib.import_module("re._parser" if sys.version_info >= (3, 11) else "sre_parse")


def _slow(pattern: str) -> str | None:
    """Why a regular expression could take very long on the name of a module; None if it could not."""
    try:
        tree = _parser.parse(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        return f"cannot be read ({error})"
    return "could take very long" if len(pattern) > 10_000 or _open_repeats(tree) > REPEATS else None


def _open_repeats(tree: Any) -> int:
    """The most open repeats on a path through a parsed regular expression; a repeat of repeats or choices counts as too
    many."""
    count = 0
    for name, value in tree:
        kind = str(name)
        if kind in ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT"):
            _, most, inner = value
            inside = _open_repeats(inner)
            many = int(most) > 10
            choices = any(str(each) == "BRANCH" for each, _ in _flat(inner))
            count += REPEATS + 1 if many and (inside or choices) else inside + many
        elif kind == "BRANCH":
            count += max(map(_open_repeats, value[1]), default=0)
        else:
            count += sum(_open_repeats(inner) for inner in _subpatterns(value))
    return count


def _flat(tree: Any) -> Iterable[tuple[Any, Any]]:
    for name, value in tree:
        yield name, value
        for inner in _subpatterns(value):
            yield from _flat(inner)


def _subpatterns(value: Any) -> Iterable[Any]:
    if isinstance(value, _parser.SubPattern):
        yield value
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _subpatterns(each)
