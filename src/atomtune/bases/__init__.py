"""Base models: load one (`loading`), what it is without its weights (`parts`), what is in a loaded one (`opening`), and
how families of them differ (`families`)."""

from atomtune.bases.loading import BaseParts, load_base
from atomtune.bases.opening import (
    MOJI,
    OFFLOADS,
    base_hash,
    call_options,
    denoiser,
    fingerprint,
    native_resolution,
    offload,
    precision_and_device,
    refuse_offload,
    resolution_for,
    same_weights,
    set_denoiser,
    side_multiple,
)
from atomtune.bases.parts import DENOISER, IMAGES, TEXT, is_hub_name
from atomtune.bases.quantizing import refuse_quantizing

__all__ = [
    "DENOISER",
    "IMAGES",
    "MOJI",
    "OFFLOADS",
    "TEXT",
    "BaseParts",
    "base_hash",
    "call_options",
    "denoiser",
    "fingerprint",
    "is_hub_name",
    "load_base",
    "native_resolution",
    "offload",
    "precision_and_device",
    "refuse_offload",
    "refuse_quantizing",
    "resolution_for",
    "same_weights",
    "set_denoiser",
    "side_multiple",
]
