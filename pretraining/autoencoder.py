"""The autoencoder: 64 × 64 pictures to 16 × 16 × 4 latents and back, diffusers' AutoencoderTiny.

Run `python -m pretraining.autoencoder`. Trained on scenes of seen names, a third of them on a background of any
colour and at any size, so that pictures of other styles survive it. Latents are kept near unit scale by a small
penalty, and the decoder sees them with a little noise, because the transformer's latents will never be exact.
"""

import argparse
import math
import random
import time

import torch
from diffusers import AutoencoderTiny
from PIL import Image
from torch import Tensor

from atomtune.moji.names import HELD_OUT_NAMES, SEEN_NAMES
from atomtune.moji.pipeline import AUTOENCODER
from atomtune.moji.scenes import RESOLUTION, to_array
from pretraining import CACHE, autocast, state
from pretraining.drawings import Drawings

LATENT_NOISE, LATENT_PENALTY = 0.05, 1e-3
LEARNING_RATE, WARMUP, BATCH = 2e-3, 200, 32
CHECKPOINT = CACHE / "autoencoder.pt"


def to_tensor(pictures: list[Image.Image]) -> Tensor:
    """Pictures as [batch, 3, 64, 64] in [-1, 1], channels last in memory (twice as fast here)."""
    pixels = torch.from_numpy(to_array(pictures)).permute(0, 3, 1, 2)
    return (pixels.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)


def _training_picture(drawings: Drawings, rng: random.Random) -> Image.Image:
    scene, _ = drawings.sample(SEEN_NAMES, rng)
    picture = drawings.picture(scene)
    if rng.random() > 1 / 3:
        return picture
    drawing = drawings.drawing(scene)
    pixels = rng.randint(20, 62)
    colour = tuple(rng.randrange(256) for _ in range(3))
    picture = Image.new("RGB", (RESOLUTION, RESOLUTION), colour)
    drawing = drawing.resize((pixels, pixels), Image.Resampling.BICUBIC)
    picture.paste(drawing, (rng.randint(0, RESOLUTION - pixels), rng.randint(0, RESOLUTION - pixels)), drawing)
    return picture


def psnr(model: AutoencoderTiny, pictures: Tensor) -> float:
    """Mean over pictures of 10 log10(1 / squared error), with pixels in [0, 1]."""
    with torch.no_grad():
        latents = [model.encode(part, return_dict=False)[0] for part in pictures.split(64)]
        rebuilt = torch.cat([model.decode(part, return_dict=False)[0] for part in latents])
    error = ((rebuilt.clamp(-1, 1) - pictures) / 2).square().mean((1, 2, 3))
    return float((-10 * error.log10()).mean())


def held_out_pictures(drawings: Drawings) -> Tensor:
    """120 scenes of held-out names, always the same."""
    rng = random.Random(0)
    return to_tensor([drawings.picture(drawings.sample(HELD_OUT_NAMES, rng)[0]) for _ in range(120)])


def train(steps: int) -> AutoencoderTiny:
    """Train to `steps`, from the last checkpoint if there is one; returns the model in float32."""
    drawings = Drawings()
    torch.manual_seed(0)
    model = AutoencoderTiny(**AUTOENCODER).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.01)

    def rate(step: int) -> float:
        return min((step + 1) / WARMUP, 0.5 + 0.5 * math.cos(math.pi * min(step / steps, 1)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    done = 0
    if last := state.load(CHECKPOINT):
        model.load_state_dict(last["model"])
        optimizer.load_state_dict(last["optimizer"])
        schedule.load_state_dict(last["schedule"])
        done = last["step"]
    held_out, started, clock = held_out_pictures(drawings), done, time.time()
    for step in range(done, steps):
        rng, generator = random.Random(step), torch.Generator().manual_seed(step)
        pictures = to_tensor([_training_picture(drawings, rng) for _ in range(BATCH)])
        with autocast():
            (latents,) = model.encode(pictures, return_dict=False)
            noise = LATENT_NOISE * torch.randn(latents.shape, generator=generator)
            difference = model.decode(latents + noise, return_dict=False)[0].float() - pictures
        loss = (
            difference.square().mean()
            + 0.1 * difference.abs().mean()
            + LATENT_PENALTY * latents.float().square().mean()
        )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if (step + 1) % 250 == 0 or step + 1 == steps:
            parts = {"model": model, "optimizer": optimizer, "schedule": schedule}
            state.save(CHECKPOINT, step=step + 1, **{name: part.state_dict() for name, part in parts.items()})
            speed = BATCH * (step + 1 - started) / (time.time() - clock)
            print(f"{step + 1} {psnr(model, held_out):.2f} dB on held-out, {speed:.0f} images/s", flush=True)
    return model.eval()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=5000)
    train(parser.parse_args().steps)
