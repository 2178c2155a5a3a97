"""How an image becomes the input of a denoiser, and the denoiser's output an image again.

    pixels --Autoencoding--> latents [batch, channels, height, width] --Layout--> what the denoiser takes

In between, everything works on plain latents, which are normalized so that noise is N(0, 1) and have one height and one
width: noise is added to them, losses are computed on them, and they are what is kept.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate, pixel_shuffle, pixel_unshuffle

Latents = Float[Tensor, "batch channels rows columns"]
Images = Float[Tensor, "batch 3 height width"]


class Autoencoding:
    """Latents as most families have them: (raw - shift) · scale, with numbers of the autoencoder's configuration."""

    patch = 1
    """Latents of the autoencoder on a side of one of the denoiser's latents."""
    statistics_are = "scaling_factor, shift_factor, latents_mean and latents_std"

    def statistics(self, vae: Any) -> tuple[float | Tensor, float | Tensor]:
        """Shift and scale, as numbers or CPU tensors."""
        config = vae.config
        scale = config.get("scaling_factor") or 1.0
        if config.get("latents_mean") is None or config.get("latents_std") is None:
            return config.get("shift_factor") or 0.0, scale
        mean, std = (torch.tensor(config[name]).view(1, -1, 1, 1) for name in ("latents_mean", "latents_std"))
        return mean, scale / std

    def arranged(self, raw: Tensor) -> Latents:
        """The autoencoder's own latents, before they are normalized, with the dimensions of plain ones."""
        return raw

    def rearranged(self, latents: Latents) -> Tensor:
        """`arranged` undone."""
        return latents

    def pixels(self, images: Images) -> Tensor:
        """Images as the autoencoder takes them."""
        return images

    def encode(self, vae: Any, images: Images) -> tuple[Latents, Latents]:
        """Mean and standard deviation of the latents, on the CPU; 0 where the autoencoder is not variational."""
        encoded = vae.encode(self.pixels(images))
        gaussian = getattr(encoded, "latent_dist", None)
        mean = encoded[0] if gaussian is None else gaussian.mean
        std = torch.zeros_like(mean) if gaussian is None else gaussian.std
        return self.normalized(vae, mean.cpu()), self.arranged(std.cpu()) * self.statistics(vae)[1]

    def mask(self, alpha: Float[Tensor, "batch 1 height width"], latents: Latents) -> Latents:
        """How much each of these latents of the images counts: the mean alpha of the pixels that it shows, over the
        mean of them all. Their mean is 1, and they are 1 exactly where alpha is the same everywhere."""
        sides = [side * self.patch for side in latents.shape[2:]]
        means = pixel_unshuffle(interpolate(alpha, sides, mode="area"), self.patch)
        return (means / means.mean(dim=(1, 2, 3), keepdim=True)).repeat(1, latents.shape[1] // means.shape[1], 1, 1)

    def decode(self, vae: Any, latents: Latents) -> Images:
        """The images of these latents."""
        shift, scale = self.statistics(vae)
        raw = self.rearranged((latents.cpu() / scale + shift).to(latents.device))
        return self.one_image(vae.decode(raw, return_dict=False)[0])

    def one_image(self, decoded: Tensor) -> Images:
        """The images in what the autoencoder gives."""
        return decoded

    def normalized(self, vae: Any, raw: Tensor) -> Latents:
        """Plain latents from the autoencoder's own, which are on the CPU."""
        shift, scale = self.statistics(vae)
        return (self.arranged(raw) - shift) * scale


class OneFrame(Autoencoding):
    """An autoencoder of videos: an image is a video of one frame, [batch, channels, 1, height, width]."""

    def arranged(self, raw: Tensor) -> Latents:
        return raw[:, :, 0]

    def rearranged(self, latents: Latents) -> Tensor:
        return latents[:, :, None]

    def pixels(self, images: Tensor) -> Tensor:
        return images[:, :, None]

    def one_image(self, decoded: Tensor) -> Images:
        return decoded[:, :, 0]


class BatchNormed(Autoencoding):
    """Flux.2: 2 × 2 latents become the channels of one, normalized by the running statistics of a batch norm."""

    patch = 2
    statistics_are = "batch norm"

    def statistics(self, vae: Any) -> tuple[Tensor, Tensor]:
        mean, variance = (value.float().cpu().view(1, -1, 1, 1) for value in (vae.bn.running_mean, vae.bn.running_var))
        return mean, (variance + vae.config.batch_norm_eps).rsqrt()

    def arranged(self, raw: Tensor) -> Latents:
        return pixel_unshuffle(raw, self.patch)

    def rearranged(self, latents: Latents) -> Tensor:
        return pixel_shuffle(latents, self.patch)


class Layout:
    """The denoiser takes and gives plain latents."""

    def pack(self, latents: Latents) -> Any:
        """Plain latents in the denoiser's layout."""
        return latents

    def unpack(self, packed: Any, size: tuple[int, int]) -> Latents:
        """Plain latents of this height and width, from the denoiser's layout or already plain."""
        return packed


class Packed(Layout):
    """[batch, tokens, channels]: `patch` × `patch` latents in one token, row by row."""

    def __init__(self, patch: int):
        self.patch = patch

    def pack(self, latents: Latents) -> Tensor:
        return pixel_unshuffle(latents, self.patch).flatten(2).mT

    def unpack(self, packed: Tensor, size: tuple[int, int]) -> Latents:
        if packed.ndim == 4:
            return packed
        rows, columns = (side // self.patch for side in size)
        return pixel_shuffle(packed[:, : rows * columns].mT.unflatten(2, (rows, columns)), self.patch)


class Listed(Layout):
    """A list of [channels, 1, height, width], one for each image."""

    def pack(self, latents: Latents) -> list[Tensor]:
        return [*latents[:, :, None]]

    def unpack(self, packed: Any, size: tuple[int, int]) -> Latents:
        return packed if isinstance(packed, Tensor) else torch.stack(packed).squeeze(2)
