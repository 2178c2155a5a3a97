"""The transformer: PixArt's own class in miniature, learning v-prediction on latents of scenes with their captions.

Run `torchrun --nproc-per-node 2 -m pretraining.transformer --images 1500000` (a process of one thread for each core:
on a busy CPU that beats two threads, which wait for each other at every operation). It goes on from its checkpoint,
or else from the committed weights with a fresh optimizer and a short warm-up. Latents and text embeddings are
computed when first met and kept in memory, so that a step is the transformer's alone. Every draw depends on the
step's number and the process's rank, so a resumed run repeats a straight one. Over the last 100,000 of the images asked
for, the learning rate falls to zero; with more images asked for later it goes on from there. `--export` writes the
running average of the weights, in fp16, into the package.
"""

import argparse
import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from diffusers import AutoencoderTiny, DDPMScheduler, PixArtTransformer2DModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from atomtune.moji.names import SEEN_NAMES
from atomtune.moji.pipeline import AUTOENCODER, MAX_TOKENS, SCHEDULER, TRANSFORMER, WEIGHTS, assemble, text_encoder
from atomtune.moji.scenes import BACKGROUNDS, PLACES, SIZES, Mix, Scene
from atomtune.sampling import grid
from pretraining import CACHE, autoencoder, state
from pretraining.drawings import Drawings

BATCH, LEARNING_RATE, WARMUP, AVERAGE, DROPPED_CAPTIONS = 32, 1e-3, 500, 0.999, 0.1
COOLDOWN = 100_000  # images
CHECKPOINT, LOG = CACHE / "transformer.pt", CACHE / "transformer.jsonl"
PROMPTS = [
    *(
        "a red apple",
        "a dog on a green background",
        "a noto drawing of a cat on a blue background",
        "a guitar",
        "a car",
    ),
    *("a small banana on the left on a black background", "a twemoji drawing of a house on a yellow background"),
    *(
        "a fish on a purple background",
        "a retro drawing of a tree on a pink background",
        "a large star on a red background",
    ),
    *(
        "a bicycle on a white background",
        "an emojione drawing of a lion on an orange background",
        "a chair",
        "a t shirt",
    ),
    *("a fluent drawing of a pizza on a gray background", "a small bird at the top on a blue background"),
]


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
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
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
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
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
    middle = 1000 * torch.sigmoid(torch.randn(count, generator=generator) - 1.1)
    anywhere = 1000 * torch.rand(count, generator=generator)
    return torch.where(torch.rand(count, generator=generator) < 0.8, middle, anywhere).long()


@dataclass
class Batch:
    """What one step learns from: noisy latents x_t, their captions and steps t, and the velocity to predict."""

    scenes: list[Scene]
    noisy: Tensor
    text: Tensor
    mask: Tensor
    timesteps: Tensor
    target: Tensor


class Batches:
    """Scenes with captions, as the transformer is fed them; batch `number` is always the same."""

    def __init__(self, vae: AutoencoderTiny, mix: Mix = Mix()) -> None:  # noqa: B008
        self.drawings, self.mix = Drawings(), mix
        self.latents, self.captions = Latents(vae, self.drawings), Captions()
        self.noise_schedule: Any = DDPMScheduler(**SCHEDULER)

    def __call__(self, number: int, count: int, sample: Callable[..., Tensor] = sample_timesteps) -> Batch:
        rng, generator = random.Random(number), torch.Generator().manual_seed(number)
        scenes, captions = zip(*(self.drawings.sample(SEEN_NAMES, rng, self.mix) for _ in range(count)), strict=True)
        captions = ["" if rng.random() < DROPPED_CAPTIONS else caption for caption in captions]
        latents, (text, mask) = self.latents(list(scenes)), self.captions(captions)
        noise = torch.randn(latents.shape, generator=generator)
        timesteps = sample(count, generator)
        noisy = self.noise_schedule.add_noise(latents, noise, timesteps)
        target = self.noise_schedule.get_velocity(latents, noise, timesteps)
        return Batch(list(scenes), noisy, text, mask, timesteps, target)


def predict(model: Any, batch: Batch) -> Tensor:
    """v̂(x_t, t, caption), [batch, 4, 16, 16], in float32."""
    with torch.autocast("cpu", torch.bfloat16):
        (predicted,) = model(
            batch.noisy, batch.text, batch.timesteps, encoder_attention_mask=batch.mask, return_dict=False
        )
    return predicted.float()


def prepare(model: PixArtTransformer2DModel) -> None:
    """Make it fast to train, in place: the weights keep their names."""
    model.train()
    model.set_attn_processor(AttnProcessor())  # compiled, for 64 tokens: 1.6 times as fast as flash attention
    for block in model.transformer_blocks:
        block.compile()


def optimizer(model: PixArtTransformer2DModel, learning_rate: float = LEARNING_RATE) -> torch.optim.AdamW:
    return torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True)


def trained_autoencoder() -> AutoencoderTiny:
    """The autoencoder of the stage before, with latents scaled to unit variance; or the committed one."""
    if (last := state.load(autoencoder.CHECKPOINT)) is None:
        return AutoencoderTiny.from_pretrained(WEIGHTS / "vae", torch_dtype=torch.float32, variant="fp16")
    vae = AutoencoderTiny(**AUTOENCODER)
    vae.load_state_dict(last["model"])
    vae.eval().requires_grad_(False).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    drawings, rng = Drawings(), random.Random(0)
    pictures = [drawings.picture(drawings.sample(SEEN_NAMES, rng)[0]) for _ in range(512)]
    with torch.no_grad():
        spread = vae.encode(autoencoder.to_tensor(pictures), return_dict=False)[0].std()
    vae.register_to_config(scaling_factor=round(1 / float(spread), 4))
    return vae


class Pretraining:
    """The model, its running average and optimizer, and how many images they have seen."""

    def __init__(self, last: int) -> None:
        torch.manual_seed(0)
        self.vae, self.images, self.restarted_at, self.last = trained_autoencoder(), 0, 0, last
        self.model = PixArtTransformer2DModel(**TRANSFORMER)
        saved, committed = state.load(CHECKPOINT), WEIGHTS / "training.json"
        if saved is None and committed.exists():
            self.model = PixArtTransformer2DModel.from_pretrained(
                WEIGHTS / "transformer", torch_dtype=torch.float32, variant="fp16"
            )
            self.images = self.restarted_at = json.loads(committed.read_text())["images"]
        self.average = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(AVERAGE))
        self.optimizer = optimizer(self.model)
        if saved:
            self.model.load_state_dict(saved["model"])
            self.average.load_state_dict(saved["average"])
            self.optimizer.load_state_dict(saved["optimizer"])
            self.images, self.restarted_at = saved["images"], saved["restarted_at"]
        prepare(self.model)
        self.rank, self.world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        self.parallel = DistributedDataParallel(self.model) if self.world > 1 else self.model
        self.batches = Batches(self.vae)

    def learning_rate(self) -> float:
        """It rises from zero after a start without an optimizer's state, and falls to zero over the last images."""
        risen = (self.images - self.restarted_at + BATCH) / (WARMUP * BATCH)
        return LEARNING_RATE * min(1.0, risen, (self.last - self.images) / COOLDOWN)

    def step(self) -> float:
        """One batch: ‖v - v̂(x_t, t, caption)‖², v-prediction; returns this process's loss."""
        number, share = self.images // BATCH * self.world + self.rank, BATCH // self.world
        batch = self.batches(number, share)
        loss = (predict(self.parallel, batch) - batch.target).square().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.average.update_parameters(self.model)
        self.images += BATCH
        return loss.item()

    def save(self) -> None:
        """Write the checkpoint."""
        parts = {"model": self.model, "average": self.average, "optimizer": self.optimizer}
        states = {name: part.state_dict() for name, part in parts.items()}
        state.save(CHECKPOINT, images=self.images, restarted_at=self.restarted_at, **states)

    def picture(self) -> None:
        """Draw `PROMPTS`, always with the same noise, into the cache."""
        average: Any = self.average.module
        pipe: Any = assemble(average, self.vae)
        pipe.set_progress_bar_config(disable=True)
        drawn = pipe(PROMPTS, generator=[torch.Generator().manual_seed(i) for i in range(len(PROMPTS))]).images
        average.train()
        grid([drawn[:8], drawn[8:]], ["", ""]).save(CACHE / f"samples-{self.images:07d}.png")

    def export(self) -> None:
        """Write the averaged weights and the autoencoder into the package, as fp16 safetensors."""
        average: Any = self.average.module
        average.half().save_pretrained(WEIGHTS / "transformer", variant="fp16")
        self.vae.half().save_pretrained(WEIGHTS / "vae", variant="fp16")
        settings = json.loads((WEIGHTS / "vae" / "config.json").read_text())
        for written in ("block_out_channels", "_name_or_path"):  # diffusers warns of one; the other is of this machine
            settings.pop(written, None)
        (WEIGHTS / "vae" / "config.json").write_text(json.dumps(settings, indent=2) + "\n")
        for file in WEIGHTS.rglob("*.safetensors"):
            file.chmod(0o644)
        (WEIGHTS / "training.json").write_text(json.dumps({"images": self.images}) + "\n")

    def run(self) -> None:
        """Train until the last image has been seen, saving every 16,000."""
        losses, clock = [], time.time()
        while self.images < self.last:
            losses.append(self.step())
            if self.rank:
                continue
            if self.images % (BATCH * 100) == 0:
                speed, loss = BATCH * len(losses) / (time.time() - clock), sum(losses) / len(losses)
                line = {"images": self.images, "loss": round(loss, 5), "images_per_second": round(speed, 1)}
                with LOG.open("a") as log:
                    log.write(json.dumps(line) + "\n")
                print(line, flush=True)
                losses, clock = [], time.time()
            if self.images % (BATCH * 500) == 0:
                self.save()
            if self.images % (BATCH * 1500) == 0:
                self.picture()
                clock = time.time()
        if not self.rank:
            self.save()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=1_500_000)
    parser.add_argument("--export", action="store_true", help="write the weights so far into the package, and stop")
    options = parser.parse_args()
    if dist.is_torchelastic_launched():
        dist.init_process_group("gloo")
    pretraining = Pretraining(options.images)
    if options.export:
        pretraining.export()
    else:
        pretraining.run()
