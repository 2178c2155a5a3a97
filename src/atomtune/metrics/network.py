"""The judge's two towers: a small CNN for images and a head on MiniLM for words.

An image is first split into background and subject. The background and the box around the subject are found from the
pixels (`locate`), and the input of the CNN is only the box, enlarged, with the background removed (`crop`). So its
features do not depend on background, size and place; these are seven further numbers, the layout.

    f = CNN(crop), l = MLP(layout)                         features [256] and [64]
    alignment = cos(P [f, l], text tower(prompt))          does the image fit the prompt?
    fidelity = mean over references of cos(Q f, Q f')      is it the same subject?
    style = argmax MLP(f)
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

SUBJECT, LAYOUT, JOINT, MINILM = 256, 64, 128, 384
BOX = 48  # pixels of the enlarged box
BORDER = 2  # pixels of an image's border by which the background is known; no drawing of a scene reaches them
DIFFERENT = 0.25  # RGB distance from the background, of [-1, 1], above which a pixel belongs to the subject
WIDTHS = (32, 64, 96, 128)  # channels at 24 × 24, 12 × 12, 6 × 6 and 3 × 3


def locate(images: Float[Tensor, "batch 3 height width"]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Find the background of images in [-1, 1], and the box around what is on it.

    Returns the background's colour [batch, 3], how much each pixel differs from it [batch, height, width], and the box
    around those that do: its center and half its sides [batch, 2], x before y, where the image reaches from -1 to 1.
    For an image with nothing on it, the box is the whole image.
    """
    inside = torch.zeros(images.shape[-2:], dtype=torch.bool)
    inside[BORDER:-BORDER, BORDER:-BORDER] = True
    colour = images[:, :, ~inside].median(-1).values
    smooth = F.avg_pool2d(images - colour[:, :, None, None], 3, 1, 1)  # so that noise does not count as subject
    difference = smooth.square().sum(1).sqrt()
    low, high = [], []
    for axis in (1, 2):  # over rows leaves columns, that is x
        there = (difference > DIFFERENT).sum(axis) >= 2
        there |= ~there.any(1, keepdim=True)
        pixels = there.shape[1]
        low.append(there.int().argmax(1) / pixels * 2 - 1)
        high.append(1 - there.flip(1).int().argmax(1) / pixels * 2)
    low, high = torch.stack(low, -1), torch.stack(high, -1)
    return colour, difference, (low + high) / 2, (high - low) / 2


def crop(
    images: Float[Tensor, "batch 3 height width"],
    difference: Float[Tensor, "batch height width"],
    center: Float[Tensor, "batch 2"],
    half: Float[Tensor, "batch 2"],
) -> Float[Tensor, "batch 4 48 48"]:
    """The square around a box, a tenth wider: colours with the background at 0, and a mask of the subject."""
    mask = (difference / (2 * DIFFERENT)).clamp(0, 1)[:, None]
    side = 1.1 * half.amax(1)
    zero = torch.zeros_like(side)
    rows = (torch.stack((side, zero, center[:, 0]), -1), torch.stack((zero, side, center[:, 1]), -1))
    grid = F.affine_grid(torch.stack(rows, 1), [len(images), 4, BOX, BOX], align_corners=False)
    return F.grid_sample(torch.cat((images * mask, mask), 1), grid, align_corners=False)


class Residual(nn.Module):
    """relu(x + conv(relu(conv(x)))), each convolution 3 × 3 with batch normalization."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*_convolution(channels, channels), nn.ReLU(), *_convolution(channels, channels))

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels height width"]:
        return F.relu(x + self.body(x))


def _convolution(channels: int, out: int, stride: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(channels, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out)]


class JudgeNetwork(nn.Module):
    """Both towers; `joint`, `subject` and `words` are unit vectors."""

    name_embeddings: Tensor

    def __init__(self, num_names: int, num_styles: int) -> None:
        super().__init__()
        first, second, third, last = WIDTHS
        self.trunk = nn.Sequential(
            *(*_convolution(4, first, stride=2), nn.ReLU()),
            *(*_convolution(first, second, stride=2), nn.ReLU(), Residual(second)),
            *(*_convolution(second, third, stride=2), nn.ReLU(), Residual(third)),
            *(*_convolution(third, last, stride=2), nn.ReLU(), nn.Flatten()),
            *(nn.Linear(last * (BOX // 16) ** 2, SUBJECT, bias=False), nn.BatchNorm1d(SUBJECT, affine=False)),
        )
        self.layout = nn.Sequential(
            *(nn.Linear(7, LAYOUT), nn.ReLU(), nn.Linear(LAYOUT, LAYOUT), nn.BatchNorm1d(LAYOUT, affine=False))
        )
        self.to_joint = nn.Linear(SUBJECT + LAYOUT, JOINT)
        self.to_subject = nn.Linear(SUBJECT, JOINT)
        self.to_style = nn.Sequential(nn.Linear(SUBJECT, 128), nn.ReLU(), nn.Linear(128, num_styles))
        self.text = nn.Sequential(
            *(nn.BatchNorm1d(MINILM, affine=False), nn.Linear(MINILM, 256), nn.ReLU(), nn.Linear(256, JOINT))
        )
        self.register_buffer(
            "name_embeddings", torch.zeros(num_names, JOINT)
        )  # `words` of "a {name}": ranks need no MiniLM

    def forward(self, images: Float[Tensor, "batch 3 64 64"]) -> Float[Tensor, "batch 320"]:
        """Features of images in [-1, 1], subject before layout; zero mean and unit variance over its training."""
        colour, difference, center, half = locate(images)
        return self.features(crop(images, difference, center, half), colour, center, half)

    def features(
        self,
        crops: Float[Tensor, "batch 4 48 48"],
        colour: Float[Tensor, "batch 3"],
        center: Float[Tensor, "batch 2"],
        half: Float[Tensor, "batch 2"],
    ) -> Float[Tensor, "batch 320"]:
        """Features from what `locate` and `crop` return."""
        layout = self.layout(torch.cat((colour, center, half), 1))
        return torch.cat((self.trunk(crops.contiguous(memory_format=torch.channels_last)), layout), 1)

    def joint(self, features: Float[Tensor, "batch 320"]) -> Float[Tensor, "batch 128"]:
        """Where an image lies in the space it shares with words."""
        return F.normalize(self.to_joint(features), dim=-1)

    def subject(self, features: Float[Tensor, "batch 320"]) -> Float[Tensor, "batch 128"]:
        """Which drawing an image shows, whatever the background, size and place."""
        return F.normalize(self.to_subject(features[:, :SUBJECT]), dim=-1)

    def style(self, features: Float[Tensor, "batch 320"]) -> Float[Tensor, "batch styles"]:
        """Logits of the styles."""
        return self.to_style(features[:, :SUBJECT])

    def words(self, sentences: Float[Tensor, "batch 384"]) -> Float[Tensor, "batch 128"]:
        """Where MiniLM's sentence embeddings lie in the shared space."""
        return F.normalize(self.text(sentences), dim=-1)
