"""What watching costs: `python -m experiments --only tracing`, with nothing else running.

Sampling with and without a trace, alternating, medians of the ratios; and one PixArt-Σ block of the real width at 4,096
tokens (a 1,024-pixel picture), both halves of guidance, with the memory that 28 layers × 20 steps of it would take.
"""

import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import PixArtTransformer2DModel
from peft import get_peft_model

import atomtune
from atomtune.tracing import Trace
from experiments.common.cells import read
from experiments.common.report import table

HERE = Path(__file__).parent
LAYERS, STEPS, ROUNDS = 28, 20, 5
TIMES = ("over_sampling_moji", "over_one_pixart_sigma_block_4096_tokens")


def ratios(run: Callable[[], Any], model: torch.nn.Module, **options: Any) -> tuple[float, Trace]:
    """Median over rounds of (time with a trace) / (time without), after a warm-up."""
    run()
    found, watch = [], atomtune.trace(model, **options)
    for number in range(ROUNDS):
        times = {}
        for watched in (False, True) if number % 2 else (True, False):
            with watch if watched else nullcontext():
                start = time.perf_counter()
                run()
                times[watched] = time.perf_counter() - start
        found.append(times[True] / times[False])
    return statistics.median(found), watch


def waken(model: Any) -> Any:
    """Atoms with directions, as after training."""
    for dictionary in atomtune.board(model).dictionaries:
        torch.nn.init.normal_(dictionary.decoder.weight, std=0.02)
    return model.eval()


@dataclass(frozen=True)
class Config:
    """One cell: what the trace keeps."""

    codes: bool

    @property
    def settings(self) -> dict[str, Any]:
        return {"layers": LAYERS, "steps": STEPS, "rounds": ROUNDS}


def grid(quick: bool = False) -> dict[str, Config]:
    """There is no small slice: a time that is measured once says nothing."""
    return {} if quick else {"statistics": Config(codes=False), "statistics-and-codes": Config(codes=True)}


@torch.no_grad()
def measure(config: Config) -> dict[str, float]:
    torch.manual_seed(0)
    atoms = atomtune.AtomConfig(target_modules=["attn1"], num_atoms=256, density=0.04)
    pipe: Any = atomtune.load_base("moji")
    pipe.transformer = waken(get_peft_model(pipe.transformer, atoms))
    block = waken(
        get_peft_model(
            PixArtTransformer2DModel(
                num_layers=1, sample_size=128, caption_channels=64, use_additional_conditions=False, out_channels=8
            ),
            atoms,
        )
    )
    latents = torch.randn(1, 4, 128, 128).expand(2, -1, -1, -1).contiguous()
    text = torch.randn(2, 20, 64)

    def one_block() -> None:
        block(
            latents,
            encoder_hidden_states=text,
            timestep=torch.tensor([500, 500]),
            added_cond_kwargs={"resolution": None, "aspect_ratio": None},
        )

    moji, _ = ratios(lambda: atomtune.generate(pipe, "a sks teapot", num=4), pipe.transformer, codes=config.codes)
    pixart, watch = ratios(one_block, block, codes=config.codes)
    layer = watch.layers[0]
    kept = sum(c.indices.nbytes + c.values.nbytes for c in layer.kept_codes)
    sums = 4 * 4 * layer.dictionary.num_atoms * 2 * STEPS
    return {
        "over_sampling_moji": round(moji - 1, 3),
        "over_one_pixart_sigma_block_4096_tokens": round(pixart - 1, 3),
        "megabytes_of_a_1024_pixel_run": round(LAYERS * (STEPS * kept + sums) / 1e6, 1),
    }


def results(out: Path = HERE) -> str:
    rows = []
    for name, one in read(out).items():
        shares = [f"{100 * one[key]:+.1f} %" for key in TIMES]
        rows.append((name.replace("-", " "), *shares, f"{one['megabytes_of_a_1024_pixel_run']:g} MB"))
    head = (
        "kept",
        "time over sampling on moji",
        "over a PixArt-Σ block, 4,096 tokens",
        "memory for a 1,024-pixel image",
    )
    return table(head, rows)
