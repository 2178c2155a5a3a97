"""The judge's two towers: a small CNN for pictures and a head on MiniLM for words.

f = image tower(picture)                           features, [256]
alignment = cos(P f, text tower(prompt))           does the picture show what the prompt says?
fidelity = mean over references of cos(Q f, Q f')  is it the same subject?
style = argmax R f
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

FEATURES, JOINT, MINILM = 256, 128, 384
STAGES = ((48, 1), (96, 2), (176, 1))  # channels and residual blocks at 16 × 16, 8 × 8 and 4 × 4


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
    """Both towers; everything that leaves it is a unit vector, save the style logits.

    The picture comes with its pixel coordinates as two more channels, because prompts speak of places.
    """

    name_embeddings: Tensor

    def __init__(self, num_names: int, num_styles: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [*_convolution(5, 24, stride=2), nn.ReLU()]
        width = 24
        for channels, blocks in STAGES:
            layers += [*_convolution(width, channels, stride=2), nn.ReLU()]
            layers += [Residual(channels) for _ in range(blocks)]
            width = channels
        self.trunk = nn.Sequential(*layers)
        self.to_features = nn.Sequential(nn.Linear(width, FEATURES, bias=False), nn.BatchNorm1d(FEATURES, affine=False))
        self.to_joint = nn.Linear(FEATURES, JOINT)
        self.to_subject = nn.Linear(FEATURES, JOINT)
        self.to_style = nn.Linear(FEATURES, num_styles)
        self.text = nn.Sequential(nn.Linear(MINILM, 256), nn.ReLU(), nn.Linear(256, JOINT))
        self.register_buffer(
            "name_embeddings", torch.zeros(num_names, JOINT)
        )  # of "a {name}", so that ranks need no MiniLM

    def features(self, pictures: Float[Tensor, "batch 3 64 64"]) -> Float[Tensor, "batch 256"]:
        """Features of pictures in [-1, 1]; about zero mean and unit variance over the training pictures."""
        line = torch.linspace(-1, 1, pictures.shape[-1], dtype=pictures.dtype)
        rows, columns = torch.meshgrid(line, line, indexing="ij")
        places = torch.stack((rows, columns)).expand(len(pictures), -1, -1, -1)
        maps = self.trunk(torch.cat((pictures, places), 1).contiguous(memory_format=torch.channels_last))
        return self.to_features(maps.mean((2, 3)))

    def joint(self, features: Float[Tensor, "batch 256"]) -> Float[Tensor, "batch 128"]:
        """Where a picture lies in the space it shares with words."""
        return F.normalize(self.to_joint(features), dim=-1)

    def subject(self, features: Float[Tensor, "batch 256"]) -> Float[Tensor, "batch 128"]:
        """Which drawing a picture shows, whatever the background, size and place."""
        return F.normalize(self.to_subject(features), dim=-1)

    def words(self, sentences: Float[Tensor, "batch 384"]) -> Float[Tensor, "batch 128"]:
        """Where MiniLM's sentence embeddings lie in the shared space."""
        return F.normalize(self.text(sentences * MINILM**0.5), dim=-1)
