"""What the transformer is fed: noisy latents of scenes, their captions as MiniLM reads them, the velocity to predict.

Batch `number` is always the same on machines of one kind; on a card the scenes are those of a CPU and the noise is
drawn there. On a CPU latents and text embeddings are computed when first met and kept, so that a step is the
transformer's alone. On a card the latents of every scene lie in one table there from the start, captions are read anew
each time (that costs less than moving them), and other processes make up the scenes.
"""

import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderTiny, DDPMScheduler
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from atomtune.moji.names import SEEN_NAMES
from atomtune.moji.pipeline import MAX_TOKENS, SCHEDULER, text_encoder
from atomtune.moji.scenes import BACKGROUNDS, PLACES, SIZES, Mix, Scene
from pretraining import autocast, autoencoder
from pretraining.bundle import Reader
from pretraining.drawings import Drawings
from pretraining.graphs import Captured

DROPPED_CAPTIONS = 0.1


class Latents:
    """Scaled latents of scenes, [batch, 4, 16, 16], encoded when first asked for and kept as float16."""

    def __init__(self, vae: AutoencoderTiny, drawings: Drawings) -> None:
        self._vae, self._drawings = vae, drawings
        self._rows: dict[Scene, int] = {}
        places = len(BACKGROUNDS) * len(SIZES) * len(PLACES)
        self._table = np.zeros((sum(map(len, drawings.styles.values())) * places, 4, 16, 16), np.float16)  # zeros: lazy

    def __call__(self, scenes: list[Scene]) -> Tensor:
        new = [scene for scene in dict.fromkeys(scenes) if scene not in self._rows]
        if new:
            pictures = autoencoder.to_tensor([self._drawings.picture(scene) for scene in new])
            with torch.no_grad(), autocast():
                latents = self._vae.encode(pictures, return_dict=False)[0].float() * self._vae.config["scaling_factor"]
            first = len(self._rows)
            self._table[first : first + len(new)] = latents.numpy()
            self._rows.update({scene: first + i for i, scene in enumerate(new)})
        return torch.from_numpy(self._table[[self._rows[scene] for scene in scenes]]).float()


class Captions:
    """MiniLM's token embeddings of captions, [batch, MAX_TOKENS, 384], and masks; computed when first asked for."""

    def __init__(self) -> None:
        self._tokenizer, self._encoder = text_encoder()
        self._known: dict[str, Tensor] = {}

    def __call__(self, captions: list[str]) -> tuple[Tensor, Tensor]:
        new = [caption for caption in dict.fromkeys(captions) if caption not in self._known]
        if new:
            tokens = self._tokenizer(new, padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
            with torch.no_grad(), autocast():
                hidden = self._encoder(**tokens).last_hidden_state
            for caption, row, length in zip(new, hidden, tokens.attention_mask.sum(1).tolist(), strict=True):
                self._known[caption] = row[:length].half()
        embeddings, mask = torch.zeros(len(captions), MAX_TOKENS, 384), torch.zeros(len(captions), MAX_TOKENS)
        for i, caption in enumerate(captions):
            known = self._known[caption]
            embeddings[i, : len(known)], mask[i, : len(known)] = known.float(), 1
        return embeddings, mask


def sample_timesteps(count: int, generator: torch.Generator) -> Tensor:
    """Four of five logit-normal around t = 250, where the signal is as strong as the noise and shapes are decided (as
    Stable Diffusion 3 does), the rest uniform: half of all uniform draws are nearly pure noise on latents this small.
    """
    device = generator.device
    middle = 1000 * torch.sigmoid(torch.randn(count, generator=generator, device=device) - 1.1)
    anywhere = 1000 * torch.rand(count, generator=generator, device=device)
    return torch.where(torch.rand(count, generator=generator, device=device) < 0.8, middle, anywhere).long()


@dataclass
class Batch:
    """What one step learns from: noisy latents x_t, their captions and steps t, and the velocity to predict."""

    scenes: list[Scene]
    noisy: Tensor
    text: Tensor
    mask: Tensor
    timesteps: Tensor
    target: Tensor


class Scenes:
    """Random scenes with captions; the same for the same number. A caption of ten is empty, for guidance."""

    def __init__(self, drawings: Drawings, mix: Mix) -> None:
        self.drawings, self.mix = drawings, mix

    def __call__(self, number: int, count: int) -> tuple[list[Scene], list[str]]:
        rng = random.Random(number)
        scenes, captions = zip(*(self.drawings.sample(SEEN_NAMES, rng, self.mix) for _ in range(count)), strict=True)
        return list(scenes), ["" if rng.random() < DROPPED_CAPTIONS else caption for caption in captions]


class Batches:
    """Batches on a CPU; see `CardBatches` for those on a card."""

    def __init__(self, vae: AutoencoderTiny, mix: Mix = Mix()) -> None:  # noqa: B008
        self.vae, self.drawings = vae, Drawings()
        self.scenes = Scenes(self.drawings, mix)
        self.latents, self.captions = Latents(vae, self.drawings), Captions()
        self.noise_schedule: Any = DDPMScheduler(**SCHEDULER)

    def __call__(self, number: int, count: int, sample: Callable[..., Tensor] = sample_timesteps) -> Batch:
        scenes, captions = self.scenes(number, count)
        generator = torch.Generator().manual_seed(number)
        return self.noised(generator, scenes, self.latents(scenes), *self.captions(captions), sample)

    def noised(
        self, generator: torch.Generator, scenes: list[Scene], latents: Tensor, text: Tensor, mask: Tensor,
        sample: Callable[..., Tensor] = sample_timesteps,
    ) -> Batch:  # fmt: skip
        """Latents with noise and steps, drawn where the latents are."""
        noise = torch.randn(latents.shape, generator=generator, device=latents.device)
        timesteps = sample(len(latents), generator)
        noisy = self.noise_schedule.add_noise(latents, noise, timesteps)
        target = self.noise_schedule.get_velocity(latents, noise, timesteps)
        return Batch(scenes, noisy, text, mask, timesteps, target)

    def stream(self, first: int, count: int, step: int = 1) -> Iterator[Batch]:
        """Batches first, first + step, first + 2·step, ..."""
        number = first
        while True:
            yield self(number, count)
            number += step

    def inputs(self, first: int, count: int, step: int = 1) -> Iterator[Any]:
        """What `running` takes for the batches of `stream`."""
        return self.stream(first, count, step)

    def running(self, step: Callable[[Batch], Tensor]) -> Callable[[Any], Tensor]:
        """A training step on a batch, as a function of `inputs`."""
        return step


class _Pictures(Dataset[np.ndarray]):
    def __init__(self, drawings: Drawings, scenes: list[Scene]) -> None:
        self.drawings, self.scenes = drawings, scenes

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> np.ndarray:
        return np.array(self.drawings.picture(self.scenes[index]))


class _Numbered(Dataset[tuple[int, Tensor, Tensor, Tensor]]):
    """Batch by number: rows of the table of latents, token ids and mask of the captions."""

    def __init__(self, scenes: Scenes, rows: dict[Scene, int], reader: Reader, first: int, count: int) -> None:
        self.scenes, self.rows, self.reader, self.first, self.count = scenes, rows, reader, first, count

    def __len__(self) -> int:
        return 2**31

    def __getitem__(self, index: int) -> tuple[int, Tensor, Tensor, Tensor]:
        number = self.first + index
        scenes, captions = self.scenes(number, self.count)
        return number, torch.tensor([self.rows[scene] for scene in scenes]), *self.reader.tokens(captions, MAX_TOKENS)


class CardBatches(Batches):
    """Batches on a card, from a bundle (see `pretraining.bundle`)."""

    def __init__(self, vae: AutoencoderTiny, bundle: Path, device: torch.device, mix: Mix = Mix()) -> None:  # noqa: B008
        self.vae, self.drawings = vae, Drawings(bundle / "drawings.npz")
        self.scenes, self.reader = Scenes(self.drawings, mix), Reader(bundle, device)
        self.noise_schedule = DDPMScheduler(**SCHEDULER)
        self.workers, self.pinned = min(12, (os.cpu_count() or 2) - 1), device.type == "cuda"
        stages = [(s, p) for s, p in product(SIZES, PLACES) if s != "large" or p == "center"]
        every = [
            Scene(name, style, background, *stage)
            for name in SEEN_NAMES
            for style in self.drawings.styles[name]
            for background, stage in product(BACKGROUNDS, stages)
        ]
        shown = [scene for scene in every if not scene.kept_out]
        self.rows = {scene: row for row, scene in enumerate(shown)}
        self.table = torch.cat(list(self._encoded(vae, shown, device)))

    @torch.no_grad()
    def _encoded(self, vae: AutoencoderTiny, scenes: list[Scene], device: torch.device) -> Iterator[Tensor]:
        vae.to(device)  # pyright: ignore[reportArgumentType]
        for pixels in DataLoader(_Pictures(self.drawings, scenes), 512, num_workers=self.workers):
            pictures = pixels.to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
            yield (vae.encode(pictures, return_dict=False)[0] * vae.config["scaling_factor"]).half()

    def inputs(self, first: int, count: int, step: int = 1) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
        """The number, rows of the table, token ids and mask of batches first, first + 1, ..., on the CPU."""
        assert step == 1, "one card"
        numbered = _Numbered(self.scenes, self.rows, self.reader, first, count)
        yield from DataLoader(numbered, None, num_workers=self.workers, pin_memory=self.pinned)

    def stream(self, first: int, count: int, step: int = 1) -> Iterator[Batch]:
        for number, *read in self.inputs(first, count, step):
            yield self.made(torch.Generator(self.table.device).manual_seed(number), *read)

    def made(self, generator: torch.Generator, rows: Tensor, ids: Tensor, mask: Tensor) -> Batch:
        """The batch of such rows and tokens."""
        latents = self.table[rows.to(self.table.device, non_blocking=True)].float()
        return self.noised(generator, [], latents, *self.reader.read(ids, mask))

    def running(self, step: Callable[[Batch], Tensor]) -> Callable[[Any], Tensor]:
        """`step` with the making of its batch, on a CUDA card as one graph; all noise is of one generator, which the
        first number seeds."""
        device = self.table.device
        generator, places = torch.Generator(device), [torch.empty(0, device=device)] * 3
        function = Captured(lambda: step(self.made(generator, *places)), generator)

        def run(inputs: tuple[int, Tensor, Tensor, Tensor]) -> Tensor:
            number, *read = inputs
            if not function.calls:
                generator.manual_seed(number)
                places[:] = [tensor.to(device) for tensor in read]
            for place, tensor in zip(places, read, strict=True):
                place.copy_(tensor, non_blocking=True)
            return function()

        return run
