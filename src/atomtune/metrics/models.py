"""Scores of models that are loaded from a folder or the hub: CLIP, DINOv2 and ImageReward.

    CLIP-T   mean cos(image, its prompt)                  `load_clip().alignment`
    CLIP-I   mean cos(image, image of the subject)        `load_clip().fidelity`
    DINO     mean cos(image, image of the subject)        `load_dino().fidelity`
    reward   ImageReward's r(prompt, image)               `load_image_reward().alignment`

The first three are DreamBooth's. All have the methods of the judge, and one number for each image as a numpy array.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from atomtune.errors import UserError

if TYPE_CHECKING:
    from PIL import Image
    from transformers import CLIPModel, Dinov2Model

CLIP, DINO, IMAGE_REWARD = "openai/clip-vit-large-patch14", "facebook/dinov2-base", "ImageReward-v1.0"
_BATCH = 16


class FeatureModel:
    """Images → vectors of length 1, and the cosine between them."""

    def __init__(self, model: Any, processor: Callable[..., Any]) -> None:
        self.model, self.processor = model.eval(), processor

    def features(self, images: Sequence[Image.Image]) -> Float[np.ndarray, "images width"]:
        """One vector of length 1 for each image."""
        return self._unit(list(images), self._of_images).numpy()

    def fidelity(
        self, images: Sequence[Image.Image], references: Sequence[Image.Image]
    ) -> Float[np.ndarray, " images"]:
        """For each image, the mean over `references` of the cosine in [-1, 1] between the two."""
        return (self.features(images) @ self.features(references).T).mean(1)

    def _of_images(self, images: list[Image.Image]) -> Tensor:
        raise NotImplementedError

    @torch.no_grad()
    def _unit(self, items: list[Any], features: Callable[[list[Any]], Tensor]) -> Float[Tensor, "items width"]:
        parts = [features(items[start : start + _BATCH]) for start in range(0, len(items), _BATCH)]
        return F.normalize(torch.cat(parts).float().cpu(), dim=-1)

    def _pixels(self, images: list[Image.Image]) -> Tensor:
        pixels = self.processor(images=[image.convert("RGB") for image in images], return_tensors="pt").pixel_values
        return pixels.to(self.model.device, self.model.dtype)


class Clip(FeatureModel):
    """CLIP: images and prompts in one space."""

    model: CLIPModel

    def alignment(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> Float[np.ndarray, " images"]:
        """Cosine in [-1, 1] between each image and its prompt, of which CLIP reads the first 77 tokens.

        Raises `UserError` when there is not one prompt for each image.
        """
        if len(images) != len(prompts):
            raise UserError(f"each image has one prompt, got {len(prompts)} for {len(images)} images.")
        different = list(dict.fromkeys(prompts))
        words = self._unit(different, self._of_prompts).numpy()
        return (self.features(images) * words[[different.index(prompt) for prompt in prompts]]).sum(1)

    def _of_images(self, images: list[Image.Image]) -> Tensor:
        return self.model.get_image_features(self._pixels(images), return_dict=True).pooler_output  # pyright: ignore

    def _of_prompts(self, prompts: list[str]) -> Tensor:
        tokens = self.processor(text=prompts, padding=True, truncation=True, return_tensors="pt").to(self.model.device)
        return self.model.get_text_features(**tokens, return_dict=True).pooler_output  # pyright: ignore


class Dino(FeatureModel):
    """DINOv2: the feature of the whole image (CLS), which tells subjects apart that have one name."""

    model: Dinov2Model

    def _of_images(self, images: list[Image.Image]) -> Tensor:
        return self.model(pixel_values=self._pixels(images)).pooler_output


class ImageReward:
    """ImageReward (arXiv 2304.05977): how much people would like an image for its prompt, about -2 to 2."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def alignment(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> Float[np.ndarray, " images"]:
        """The reward of each image with its prompt."""
        return np.array([float(self.model.score(prompt, image)) for image, prompt in zip(images, prompts, strict=True)])


def load_clip(name: str = CLIP, device: str | torch.device = "cpu") -> Clip:
    """Any `CLIPModel`, a folder or a name of the hub, in float32. Raises `UserError` if it cannot be loaded."""
    from transformers import AutoProcessor, CLIPModel

    return _loaded(Clip, CLIPModel, AutoProcessor, name, device)


def load_dino(name: str = DINO, device: str | torch.device = "cpu") -> Dino:
    """Any `Dinov2Model`, a folder or a name of the hub, in float32. Raises `UserError` if it cannot be loaded."""
    from transformers import AutoImageProcessor, Dinov2Model

    return _loaded(Dino, Dinov2Model, AutoImageProcessor, name, device)


def load_image_reward(name: str = IMAGE_REWARD, device: str | torch.device = "cpu") -> ImageReward:
    """ImageReward, of the package `image-reward`. Raises `UserError` if it is not installed, or cannot be imported
    beside the other packages."""
    try:
        import ImageReward as package  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        if error.name == "ImageReward":
            raise UserError(
                "image_reward needs the package image-reward, which is not installed: try pip install "
                "'atomtune[image-reward]', in an environment of its own, because it pins old versions of others."
            ) from error
        raise UserError(
            f"the package image-reward is installed, but does not go with the others ({error}): leave image_reward "
            "out, and score the images that compare wrote in an environment of its own."
        ) from error
    return ImageReward(package.load(name, device=str(device)))


def _loaded(kind: type[Any], model: Any, processor: Any, name: str, device: str | torch.device) -> Any:
    try:
        return kind(model.from_pretrained(name, dtype=torch.float32).to(device), processor.from_pretrained(name))
    except (OSError, ValueError) as error:
        said = " ".join(str(error).split())
        raise UserError(f"{name} could not be loaded as a {model.__name__} ({said}).") from error
