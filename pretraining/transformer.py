"""The transformer: PixArt's own class in miniature, learning v-prediction on latents of scenes with their captions.

Run `torchrun --nproc-per-node 2 -m pretraining.transformer --images 5000000` (a process of one thread for each core:
on a busy CPU that beats two threads, which wait for each other at every operation), or on a machine with a card

    python -m pretraining.transformer --device cuda --bundle DIR --out DIR --images 20000000

It goes on from its checkpoint, or else from the committed weights with a fresh optimizer and a short warm-up. Every
draw depends on the step's number and the process's rank, so a resumed run repeats a straight one. Over the last fifth
of the images that it has to see the learning rate falls to zero; with more asked for later it goes on from there.
`--export` writes the running average of the weights, in fp16, into the package.
"""

import argparse
import copy
import json
import random
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate.utils import find_executable_batch_size
from diffusers import AutoencoderTiny, PixArtTransformer2DModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from atomtune.moji.names import SEEN_NAMES
from atomtune.moji.pipeline import AUTOENCODER, TRANSFORMER, WEIGHTS_FOLDER, assemble
from atomtune.moji.scenes import Mix
from atomtune.sampling import grid
from pretraining import CACHE, autocast, autoencoder, state
from pretraining.batches import Batch, Batches, CardBatches
from pretraining.drawings import Drawings

BATCH = 32
LEARNING_RATE = 1e-3
WARMUP = 500
"""Steps over which the learning rate rises after a start without an optimizer's state."""
COOLDOWN = 0.2
"""Last share of the images that are still to be seen over which it falls to zero."""
AVERAGE, AVERAGE_EVERY = 0.999, 8
"""Share of the running average that a batch of 32 leaves, and steps between two takings."""
MIX = Mix(style_said=0.95)
"""Which scenes, and what their captions say."""
KEEP_EVERY, KEEP_DOUBLED_FROM, KEPT = 500_000, 5_000_000, "kept"
"""Averaged weights are kept for `pretraining.evaluate` every half million images, and beyond five million each time
their number has doubled, each in a folder of its own in this one."""
SAVE_EVERY = 240
"""Seconds between checkpoints."""
CHECKPOINT, LOG = CACHE / "transformer.pt", "transformer.jsonl"
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


def kept_point(images: int) -> int:
    """The last number of images at which weights are kept."""
    if images < KEEP_DOUBLED_FROM:
        return images // KEEP_EVERY * KEEP_EVERY
    return KEEP_DOUBLED_FROM << (images // KEEP_DOUBLED_FROM).bit_length() - 1


def predict(model: Any, batch: Batch) -> Tensor:
    """v̂(x_t, t, caption), [batch, 4, 16, 16], in float32."""
    with autocast(batch.noisy.device.type):
        (predicted,) = model(
            batch.noisy, batch.text, batch.timesteps, encoder_attention_mask=batch.mask, return_dict=False
        )
    return predicted.float()


def prepare(model: PixArtTransformer2DModel) -> None:
    """Make it fast to train, in place: the weights keep their names."""
    model.train()
    if model.device.type == "cpu":
        model.set_attn_processor(AttnProcessor())  # compiled, for 64 tokens: 1.6 times as fast as flash attention
    for block in model.transformer_blocks:
        block.compile()


def optimizer(model: PixArtTransformer2DModel, learning_rate: float = LEARNING_RATE) -> torch.optim.AdamW:
    card = model.device.type == "cuda"
    rate = torch.tensor(learning_rate, device=model.device)  # a tensor, so that a captured step sees it change
    return torch.optim.AdamW(
        model.parameters(), lr=rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True, capturable=card
    )


def step(model: Any, optimizer: torch.optim.Optimizer, batch: Batch) -> Tensor:
    """One step on ‖v - v̂(x_t, t, caption)‖², v-prediction; returns this loss."""
    loss = (predict(model, batch) - batch.target).square().mean()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return loss.detach()


def trained_autoencoder() -> AutoencoderTiny:
    """The autoencoder of the stage before, with latents scaled to unit variance; or the committed one."""
    if (last := state.load(autoencoder.CHECKPOINT)) is None:
        return AutoencoderTiny.from_pretrained(WEIGHTS_FOLDER / "vae", torch_dtype=torch.float32, variant="fp16")
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
    """The model, its running average and optimizer, and how many images they have seen.

    Args:
        last: Images it is to see in all.
        device: "cpu", or that of a card.
        start: Folder of weights, laid out as those in the package, to go on from where no checkpoint has seen more.
        bundle: On a card, the folder of `pretraining.bundle`.
        out: Where results go in files of at most 15 MB: the averaged weights, the log, samples.
    """

    def __init__(
        self,
        last: int,
        device: str = "cpu",
        start: Path = WEIGHTS_FOLDER,
        bundle: Path | None = None,
        out: Path = CACHE,
    ) -> None:
        torch.manual_seed(0)
        self.vae, self.images, self.restarted_at, self.last = trained_autoencoder(), 0, 0, last
        self.device, self.out = torch.device(device), out
        self.model = PixArtTransformer2DModel(**TRANSFORMER)
        saved, training = state.load(CHECKPOINT), start / "training.json"
        images = json.loads(training.read_text())["images"] if training.exists() else 0
        if images > (saved["images"] if saved else 0):
            saved = None
            self.model = PixArtTransformer2DModel.from_pretrained(
                start / "transformer", torch_dtype=torch.float32, variant="fp16"
            )
            self.images = self.restarted_at = images
        self.model.to(self.device)  # pyright: ignore[reportArgumentType]
        self.average = AveragedModel(self.model)
        self.optimizer = optimizer(self.model)
        if saved:
            self.model.load_state_dict(saved["model"])
            self.average.load_state_dict(saved["average"])
            rates = [group["lr"] for group in self.optimizer.param_groups]
            self.optimizer.load_state_dict(saved["optimizer"])
            for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
                group["lr"] = rate  # of its device; in older checkpoints it is a number
            self.images, self.restarted_at = saved["images"], saved["restarted_at"]
        prepare(self.model)
        self.rank, self.world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        self.parallel = DistributedDataParallel(self.model) if self.world > 1 else self.model
        if bundle is None:
            self.batches = Batches(self.vae, MIX)
        else:
            self.batches = CardBatches(self.vae, bundle, self.device, MIX)

    def learning_rate(self, batch: int) -> float:
        """It rises from zero after a start without an optimizer's state, and falls to zero over the last images."""
        risen = (self.images - self.restarted_at + batch) / (WARMUP * batch)
        falling = (self.last - self.images) / (COOLDOWN * (self.last - self.restarted_at))
        return LEARNING_RATE * min(1.0, risen, falling)

    def save(self) -> None:
        """Write the checkpoint."""
        parts = {"model": self.model, "average": self.average, "optimizer": self.optimizer}
        states = {name: part.state_dict() for name, part in parts.items()}
        state.save(CHECKPOINT, images=self.images, restarted_at=self.restarted_at, **states)
        if self.out != CACHE:
            self.export(self.out, shard="15MB")

    def picture(self) -> None:
        """Draw `PROMPTS`, always with the same noise."""
        average: Any = self.average.module
        pipe: Any = assemble(average, self.vae)
        pipe.set_progress_bar_config(disable=True)
        drawn = pipe(PROMPTS, generator=[torch.Generator().manual_seed(i) for i in range(len(PROMPTS))]).images
        average.train()
        grid([drawn[:8], drawn[8:]], ["", ""]).save(self.out / f"samples-{self.images:07d}.png")

    def export(self, folder: Path = WEIGHTS_FOLDER, shard: str = "10GB") -> None:
        """Write the averaged weights and the autoencoder, as fp16 safetensors, and how many images they have seen."""
        average: Any = copy.deepcopy(self.average.module)
        average.half().save_pretrained(folder / "transformer", variant="fp16", max_shard_size=shard)
        copy.deepcopy(self.vae).half().save_pretrained(folder / "vae", variant="fp16")
        settings = json.loads((folder / "vae" / "config.json").read_text())
        for written in ("block_out_channels", "_name_or_path"):  # diffusers warns of one; the other is of this machine
            settings.pop(written, None)
        (folder / "vae" / "config.json").write_text(json.dumps(settings, indent=2) + "\n")
        for file in folder.rglob("*.safetensors"):
            file.chmod(0o644)
        (folder / "training.json").write_text(json.dumps({"images": self.images}) + "\n")

    def run(self, size: int = BATCH) -> None:
        """Train with batches of `size` until the last image has been seen."""
        self.average.multi_avg_fn = get_ema_multi_avg_fn(AVERAGE ** (AVERAGE_EVERY * size / BATCH))
        number = self.images // size * self.world + self.rank
        losses, clock, saved, saves = [], time.time(), time.time(), 0
        run = self.batches.running(lambda batch: step(self.parallel, self.optimizer, batch))
        for inputs in self.batches.inputs(number, size // self.world, self.world):
            if self.images >= self.last:
                break
            before = self.images
            for group in self.optimizer.param_groups:
                group["lr"].fill_(self.learning_rate(size))
            losses.append(run(inputs).clone())
            self.images += size
            if self.images // size % AVERAGE_EVERY == 0:
                self.average.update_parameters(self.model)
            if self.rank:
                continue
            if (reached := kept_point(self.images)) > kept_point(before):
                self.export(self.out / KEPT / str(reached))
            if len(losses) == 100:
                loss, speed = float(torch.stack(losses).mean()), size * len(losses) / (time.time() - clock)
                line = {"images": self.images, "loss": round(loss, 5), "images_per_second": round(speed, 1)}
                with (self.out / LOG).open("a") as log:
                    log.write(json.dumps(line) + "\n")
                print(line, flush=True)
                losses, clock = [], time.time()
            if time.time() - saved > SAVE_EVERY:
                self.save()
                saves += 1
                if self.device.type == "cpu" and saves % 4 == 0:
                    self.picture()
                saved = clock = time.time()
                losses = []
        if not self.rank:
            self.save()


def main() -> None:
    """Train, or export."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=5_000_000, help="images it is to have seen in all")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--start", type=Path, default=WEIGHTS_FOLDER, help="folder of weights to go on from")
    parser.add_argument("--bundle", type=Path, help="folder of pretraining.bundle; needed on a card")
    parser.add_argument("--out", type=Path, default=CACHE, help="folder for weights, log and samples")
    parser.add_argument("--batch", type=int, help="32 on a CPU; on a card 512, or the largest below that fits")
    parser.add_argument("--export", action="store_true", help="write the weights so far into the package, and stop")
    options = parser.parse_args()
    card = options.device != "cpu"
    if card and options.bundle is None:
        parser.error("--device needs --bundle: write one with `python -m pretraining.bundle DIR`")
    torch.set_float32_matmul_precision("high")  # what autocast leaves in float32, on a card
    if dist.is_torchelastic_launched():
        dist.init_process_group("gloo")
    options.out.mkdir(parents=True, exist_ok=True)
    pretraining = Pretraining(options.images, options.device, options.start, options.bundle, options.out)
    if options.export:
        pretraining.export()
    elif card:
        find_executable_batch_size(pretraining.run, starting_batch_size=options.batch or 512)()
    else:
        pretraining.run(options.batch or BATCH)


if __name__ == "__main__":
    main()
