"""Base models: open one and find its parts (`opening`), and what differs from family to family (`families`)."""

from atomtune.bases.opening import (
    MOJI,
    base_hash,
    call_options,
    denoiser,
    fingerprint,
    is_hub_name,
    load_autoencoder,
    load_base,
    native_resolution,
    precision_and_device,
    resolution_for,
    same_weights,
    set_denoiser,
    side_multiple,
)

__all__ = [
    "MOJI",
    "base_hash",
    "call_options",
    "denoiser",
    "fingerprint",
    "is_hub_name",
    "load_autoencoder",
    "load_base",
    "native_resolution",
    "precision_and_device",
    "resolution_for",
    "same_weights",
    "set_denoiser",
    "side_multiple",
]
