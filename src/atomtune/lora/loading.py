"""Read LoRA files that other programs wrote: rename the tensors to PEFT's names, or refuse the file.

diffusers   transformer.transformer_blocks.0.attn1.to_q.lora_A.weight, unet.….lora.down.weight
kohya       lora_unet_transformer_blocks_0_attn1_to_q.lora_down.weight, lora_transformer_….alpha
            (diffusers converts them for pipelines that load LoRAs; for others the names are those of the modules)
"""

from __future__ import annotations

import inspect
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from atomtune.bases import denoiser
from atomtune.errors import UserError
from atomtune.storage import foreign
from atomtune.tracing import bare_model

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

logger = logging.getLogger(__name__)

_KOHYA = ("lora_unet_", "lora_transformer_")
_TEXT = ("lora_te", "text_encoder", "text_model")
_MORE = ("dora_scale", "lora_magnitude_vector", "lora_mid", "hada_", "lokr_", "oft_")  # DoRA, LoCon, LoHa, LoKr, OFT


def read(file: Path) -> dict[str, Tensor]:
    """The tensors of a file that holds a LoRA and nothing else. Raises `UserError`. Needs no base."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if foreign.is_pickle(file):
            raise UserError(
                f"{str(file)!r} is a pickle, which may run any code when it is read: save it as .safetensors."
            )
        foreign.read_header(file)
        foreign.refuse_bad_numbers(file)
        state = load_file(file)
    except UserError:
        raise
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(
            f"the LoRA {str(file)!r} could not be read ({error}): expected a folder or a .safetensors file."
        ) from error
    if (file.parent / "adapter_config.json").is_file():
        raise UserError(
            f"{str(file)!r} is only a part of an adapter: give its folder, which also has adapter_config.json."
        )
    if more := [key for key in state if any(word in key for word in _MORE)]:
        raise UserError(f"{str(file)!r} is more than a plain LoRA (it has {more[0]!r}): only plain LoRA becomes atoms.")
    if not any("lora" in key for key in state):
        raise UserError(f"{str(file)!r} holds no LoRA: expected keys such as 'transformer.….lora_A.weight'.")
    for key, value in state.items():
        if key.endswith(".alpha") and value.numel() != 1:
            raise UserError(f"{key!r} in {str(file)!r} must be one number, got {list(value.shape)}: download it again.")
    return state


def fitted(pipe: DiffusionPipeline, state: dict[str, Tensor], file: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of `read` under PEFT's names for the pipeline's denoiser, and the fields of their `LoraConfig`.

    Weights for text encoders are left out, with a warning in the log. Raises `UserError` if the rest does not fit.
    """
    from diffusers.utils.peft_utils import get_peft_kwargs
    from diffusers.utils.state_dict_utils import convert_unet_state_dict_to_peft

    state, alphas = _by_diffusers(pipe, state, file)
    if any(key.startswith(_TEXT) for key in state):
        logger.warning("%s: its weights for text encoders are left out; only the denoiser gets atoms", file)
    state, alphas = _of_the_denoiser(state), _of_the_denoiser(alphas)
    modules = dict(bare_model(denoiser(pipe)).named_modules())
    state = _by_modules(state, modules, file)
    alphas |= {key: float(state.pop(key)) for key in [key for key in state if key.endswith(".alpha")]}
    if not any(".lora_A." in key for key in state):
        state, alphas = convert_unet_state_dict_to_peft(state), convert_unet_state_dict_to_peft(alphas)
    _refuse_misfits(state, modules, file)
    ranks = {key: value.shape[1] for key, value in state.items() if ".lora_B." in key}
    return state, get_peft_kwargs(ranks, alphas, state)


def _of_the_denoiser(values: dict[str, Any]) -> dict[str, Any]:
    """The values that are not for text encoders, by their names inside the denoiser."""
    prefixes = ("transformer.", "unet.")
    values = {key: value for key, value in values.items() if not key.startswith(_TEXT)}
    return {key.split(".", 1)[1] if key.startswith(prefixes) else key: value for key, value in values.items()}


def _by_diffusers(pipe: Any, state: dict[str, Tensor], file: Path) -> tuple[dict[str, Tensor], dict[str, float]]:
    """The tensors and alphas, converted by the pipeline if it has converters."""
    if not hasattr(pipe, "lora_state_dict"):
        return state, {}
    options: dict[str, Any] = {"unet_config": pipe.unet.config} if hasattr(pipe, "unet") else {}
    if "return_alphas" in inspect.signature(pipe.lora_state_dict).parameters:
        options["return_alphas"] = True
    try:
        found = pipe.lora_state_dict(dict(state), **options)
    except Exception as error:  # converters fail in many ways on keys that they do not know
        raise _misfit(file, " ".join(str(error).split())[:200]) from error
    found, alphas = found if isinstance(found, tuple) else (found, {})
    return found, {key: float(value) for key, value in (alphas or {}).items()}


def _by_modules(state: dict[str, Tensor], modules: dict[str, Any], file: Path) -> dict[str, Tensor]:
    """Rename kohya's keys: each is a module's name with `_` for `.`, so the module is looked up."""
    names = {name.replace(".", "_"): name for name in modules}
    found = {}
    for key, value in state.items():
        layer, _, part = key.partition(".")
        if prefix := next((prefix for prefix in _KOHYA if layer.startswith(prefix)), None):
            if (name := names.get(layer.removeprefix(prefix))) is None:
                raise _misfit(file, f"it has no layer {layer!r}")
            part = part.replace("lora_down.", "lora_A.").replace("lora_up.", "lora_B.")
            key = f"{name}.{part}"
        found[key] = value
    return found


def _refuse_misfits(state: dict[str, Tensor], modules: dict[str, Any], file: Path) -> None:
    """Raise `UserError` unless every tensor is the A or B of a layer that exists, with the width of the layer."""
    if not state:
        raise _misfit(file, "it has no weights for the denoiser")
    for key, tensor in state.items():
        name, half, rest = key.rpartition(".lora_A.") if ".lora_A." in key else key.rpartition(".lora_B.")
        if not half or rest != "weight":
            raise _misfit(file, f"it has no place for {key!r}")
        if (layer := modules.get(name)) is None:
            raise _misfit(file, f"it has no layer {name!r}")
        other = state.get(key.replace(".lora_A.", ".lora_B.") if "_A" in half else key.replace(".lora_B.", ".lora_A."))
        if other is None:
            raise UserError(f"{str(file)!r} is incomplete, the other half of {key!r} is missing: download it again.")
        kind, side = ("in", 1) if "_A" in half else ("out", 0)
        width = getattr(layer, f"{kind}_features", getattr(layer, f"{kind}_channels", None))
        fits = tensor.ndim == other.ndim >= 2 and tensor.shape[side] == width
        if not fits or tensor.shape[1 - side] != other.shape[side]:
            raise _misfit(file, f"{key!r} is {list(tensor.shape)}, and the layer takes {width}")


def _misfit(file: Path, reason: str) -> UserError:
    return UserError(f"the LoRA {str(file)!r} does not fit this base ({reason}): name the base it was made for.")
