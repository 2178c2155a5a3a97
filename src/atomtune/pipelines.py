"""Open a base model or an adapter, by name or path, and put an adapter on disk.

A base is any diffusers pipeline whose denoiser is its `transformer` or `unet`. Nothing here or above knows which one it
has: sizes, defaults and text handling are read from the pipeline itself.
"""

from __future__ import annotations

import inspect
import json
import re
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from atomtune.errors import UserError
from atomtune.files import atomic_folder

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from peft import PeftModel

MOJI = "moji"


def load_base(name_or_path: str | Path, dtype: torch.dtype = torch.float32) -> DiffusionPipeline:
    """Open a base: `"moji"`, a folder saved by diffusers, or a hub name. Raises `UserError` if there is none."""
    name = str(name_or_path)
    if name == MOJI:
        from atomtune import moji

        pipe = moji.load()
        if dtype != torch.float32:  # what it is; diffusers warns of any cast
            pipe.to(dtype)
        pipe.register_to_config(_name_or_path=MOJI)
    else:
        pipe = _from_pretrained(name, dtype)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _from_pretrained(name: str, dtype: torch.dtype) -> DiffusionPipeline:
    from diffusers import DiffusionPipeline

    expected = f"expected {MOJI!r}, a folder that holds a diffusers pipeline (model_index.json), or a hub name such as "
    expected += "'PixArt-alpha/PixArt-Sigma-XL-2-1024-MS'"
    is_hub_name = re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not Path(name).exists()
    if not is_hub_name and not (Path(name) / "model_index.json").is_file():
        raise UserError(f"there is no base model {name!r}: {expected}.")
    try:
        return DiffusionPipeline.from_pretrained(name, dtype=dtype)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"the base model {name!r} could not be opened ({reason:.200}): {expected}.") from error


def load_autoencoder(name_or_path: str | Path, kind: type[Any]) -> Any:
    """The base's autoencoder alone, of the class `kind`, in float32."""
    if str(name_or_path) == MOJI:
        return load_base(MOJI).vae
    return kind.from_pretrained(str(name_or_path), subfolder="vae")


def denoiser(pipe: DiffusionPipeline) -> Any:
    """The network that is adapted: `pipe.transformer`, or `pipe.unet` where there is no transformer."""
    return getattr(pipe, _denoiser_name(pipe))


def set_denoiser(pipe: DiffusionPipeline, model: torch.nn.Module) -> None:
    """Put `model` (an adapted denoiser) in the pipeline's place for it."""
    setattr(pipe, _denoiser_name(pipe), model)


def _denoiser_name(pipe: DiffusionPipeline) -> str:
    for name in ("transformer", "unet"):
        if isinstance(getattr(pipe, name, None), torch.nn.Module):
            return name
    raise UserError(f"{type(pipe).__name__} has neither a transformer nor a unet: there is nothing to adapt.")


def native_resolution(pipe: DiffusionPipeline) -> int:
    """Height and width, in pixels, that the base draws by default."""
    size = denoiser(pipe).config.sample_size
    return (size if isinstance(size, int) else size[0]) * pipe.vae_scale_factor


def call_options(pipe: DiffusionPipeline, resolution: int | None = None) -> dict[str, Any]:
    """Arguments for drawing square pictures; everything else is left to the pipeline's own defaults."""
    size = resolution or native_resolution(pipe)
    options: dict[str, Any] = {"height": size, "width": size}
    accepted = inspect.signature(type(pipe).__call__).parameters
    # PixArt's binning maps a size to one of a list for four known resolutions and refuses every other one.
    if "use_resolution_binning" in accepted:
        options["use_resolution_binning"] = False
    # Without its two packages diffusers leaves captions as they are too, but warns every time.
    if "clean_caption" in accepted and not (find_spec("bs4") and find_spec("ftfy")):
        options["clean_caption"] = False
    return options


def fingerprint(model: torch.nn.Module) -> list[float]:
    """Sixteen of the base's own weights: enough to recognise it again under another path, name or precision.

    The first parameter is read because adapters register their own after the layer they sit on.
    """
    first = next(model.parameters()).detach().flatten()
    return first[:: max(1, len(first) // 16)][:16].float().cpu().tolist()


def adapter_folder(path: str | Path) -> Path:
    """The PEFT folder at `path`, which may be the folder itself or a run that holds it as `adapter/`."""
    for folder in (Path(path), Path(path) / "adapter"):
        if (folder / "adapter_config.json").is_file():
            return folder
    raise UserError(
        f"there is no adapter in {str(path)!r}: expected a folder with adapter_config.json, or a finished run of "
        "`atomtune customize`."
    )


def adapter_info(path: str | Path) -> dict[str, Any]:
    """What `adapter_config.json` says: PEFT's own fields, `base_model_name_or_path`, and under `auto_mapping` ours
    (`token`, `class_name`, `base_fingerprint`)."""
    file = adapter_folder(path) / "adapter_config.json"
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file} is not valid JSON ({error}): save the adapter again.") from error


def load_adapter(
    pipe: DiffusionPipeline, path: str | Path, adapter_name: str = "default", trainable: bool = False
) -> PeftModel:
    """Attach the adapter at `path` to the pipeline's denoiser and return the adapted denoiser.

    Raises `UserError` if it was trained on another base, naming both.
    """
    from peft import PeftModel
    from safetensors import SafetensorError

    import atomtune.adapters  # noqa: F401  registers the atoms with PEFT

    folder, info, model = adapter_folder(path), adapter_info(path), denoiser(pipe)
    wanted, given = info.get("base_model_name_or_path"), pipe.name_or_path or type(pipe).__name__
    if wanted == given:
        given = "the weights it has now"
    refusal = f"the adapter {str(path)!r} was trained on the base {wanted!r}, not on {given!r}: open it with that base."
    expected = (info.get("auto_mapping") or {}).get("base_fingerprint")
    if expected is not None and not same_weights(expected, fingerprint(model)):
        raise UserError(refusal)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "Found missing adapter keys", UserWarning)
            if isinstance(model, PeftModel):
                model.load_adapter(str(folder), adapter_name, is_trainable=trainable)
            else:
                model = PeftModel.from_pretrained(model, str(folder), adapter_name, is_trainable=trainable)
    except UserError:
        raise
    except (RuntimeError, ValueError, UserWarning) as error:  # shapes, modules and weights that do not fit
        raise UserError(refusal) from error
    except SafetensorError as error:
        raise UserError(f"the weights in {str(folder)!r} cannot be read ({error}): save the adapter again.") from error
    set_denoiser(pipe, model)
    return model


def set_scale(model: torch.nn.Module, scale: float, adapter_name: str = "default") -> None:
    """Strength of an adapter of any of PEFT's methods that have one: 0 is the base, 1 the adapter as trained."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for layer in model.modules():
        if isinstance(layer, BaseTunerLayer):
            tuner: Any = layer
            tuner.set_scale(adapter_name, scale)


def same_weights(expected: list[float], found: list[float]) -> bool:
    """Equal up to half precision (weights may have been stored in fp16 or bf16)."""
    if len(expected) != len(found):
        return False
    a, b = torch.tensor(expected), torch.tensor(found)
    return bool((a - b).norm() <= 0.02 * a.norm())


def save_adapter(
    model: PeftModel,
    folder: str | Path,
    *,
    base: str,
    adapter_name: str = "default",
    token: str | None = None,
    class_name: str | None = None,
    card: str | None = None,
) -> Path:
    """Write one adapter as a PEFT folder, whole or not at all, and return the folder.

    `adapter_config.json` names the base, the token and the class; `card` is the README.
    """
    with atomic_folder(folder) as temporary:
        # "auto" would ask the hub whether the base has a vocabulary.
        model.save_pretrained(str(temporary), selected_adapters=[adapter_name], save_embedding_layers=False)
        if adapter_name != "default":  # PEFT puts every other name in a folder of its own
            for file in (temporary / adapter_name).iterdir():
                file.rename(temporary / file.name)
            (temporary / adapter_name).rmdir()
        config = json.loads((temporary / "adapter_config.json").read_text(encoding="utf-8"))
        config["base_model_name_or_path"] = str(Path(base).resolve()) if Path(base).is_dir() else base
        config["auto_mapping"] = (config["auto_mapping"] or {}) | {
            "base_fingerprint": fingerprint(model),
            "token": token,
            "class_name": class_name,
        }
        if isinstance(config["target_modules"], list):
            config["target_modules"].sort()
        (temporary / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")
        if card is not None:
            (temporary / "README.md").write_text(card, encoding="utf-8")
    return Path(folder)
