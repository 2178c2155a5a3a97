"""What Table 1 costs at the paper's scale, before anybody rents a card: `python -m experiments.customization.estimate`

Memory is that of `atomtune plan`. Hours are FLOP, counted on the meta device for one step of training and of drawing,
over the rate of a card. Both are estimates: nothing of this was run on real weights.
"""

import argparse
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from atomtune.files import write_text
from atomtune.planning.memory import Sizes, examples, needs, with_allowance
from atomtune.planning.parts import find_parts
from atomtune.planning.storages import Storages
from atomtune.training.recipes import configure
from experiments.common.report import DOCS, table
from experiments.customization.run import NUM
from experiments.customization.tasks import PROMPTS

BASE = "PixArt-alpha/PixArt-Sigma-XL-2-1024-MS"
SUBJECTS, IMAGES, SAMPLING_STEPS = 30, 5, 20
"""Of DreamBooth's dataset; images of a subject; PixArt-Σ's own number of steps."""
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("LoRA, r = 16", {"method": "lora", "rank": 16, "target_modules": ["attn1"]}),
    "dora": ("DoRA, r = 16", {"method": "dora", "rank": 16, "target_modules": ["attn1"]}),
    "oft": ("OFT, r = 4", {"method": "oft", "rank": 4, "target_modules": ["attn1"]}),
    "recipe": ("atoms, the base's recipe (the paper's order)", {}),
    "values": ("atoms on the values", {"method": "atoms", "target_modules": ["attn1.to_v"]}),
}
PAGE = DOCS / "results" / "paper-scale.md"


def flops(adapted: Any, step: Any, train: bool) -> float:
    """FLOP of a forward pass, and with `train` of its backward pass, on tensors without values."""
    adapted.model.train(train)
    with FlopCounterMode(display=False) as counter, Storages(), torch.set_grad_enabled(train):
        output = adapted.run(step)
        if train:
            output.float().square().mean().backward()
    return counter.get_total_flops()


def rows(teraflops: float, share: float) -> list[list[str]]:
    """A row for each method."""
    parts, found = find_parts(BASE), []
    sizes = Sizes.of(parts, None, torch.bfloat16)
    images = SUBJECTS * PROMPTS * NUM
    for title, options in METHODS.values():
        config = configure(images="images", class_name="subject", out="run", base=BASE, **options)
        adapted = sizes.adapted(config, checkpointing=False)
        plain, checkpointed = needs(sizes, title, config, adapted)[:2]
        steps = config.steps or config.epochs * IMAGES
        training = flops(adapted, sizes.step(examples(config)), train=True)
        drawing = flops(adapted, sizes.step(1 + parts.guided), train=False)
        hours = [
            amount / (teraflops * 1e12 * share) / 3600
            for amount in (SUBJECTS * steps * training, images * SAMPLING_STEPS * drawing)
        ]
        found.append(
            [
                title, f"{sum(p.numel() for p in adapted.trained) / 1e6:.1f} M",
                *(f"{with_allowance(need.training.peak) / 2**30:.1f}" for need in (plain, checkpointed)),
                f"{checkpointed.card / 2**30:.1f}",
                f"{training / 1e12:.1f}", f"{drawing / 1e12:.1f}", *(f"{one:.1f}" for one in (*hours, sum(hours))),
            ]
        )  # fmt: skip
    return found


def text(teraflops: float, share: float) -> str:
    head = ["", "trained", "GiB to train", "with checkpointing", "GiB of the whole run", "TFLOP, training step"]
    head += ["drawing step", "hours of training", "of drawing", "together"]
    return f"""# Table 1 at the paper's scale: an estimate

Written by `python -m experiments.customization.estimate`. **Nothing here was run on real weights.**

    python -m experiments.customization.run --base {BASE} --subjects DREAMBOOTH_DIR

trains each method on {SUBJECTS} subjects of {IMAGES} images at 1024 pixels in bfloat16, as long as the base's recipe
says, and draws {PROMPTS} prompts × {NUM} images of each, {SAMPLING_STEPS} steps with guidance. Memory is that of
`atomtune plan`, its allowance for what is not counted included: what a card must have free. The whole run's is that of
reading the captions with the text encoder, before training. FLOP are counted on tensors without values. Hours are these
FLOP at {share:.0%} of {teraflops:g} TFLOP/s, the dense bfloat16 rate that a card of 24 GB (RTX 4090) is sold with;
`--teraflops` and `--share` set others. Encoding adds minutes; what the metrics' own models take is not in it.

{table(head, rows(teraflops, share))}
"""


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teraflops", type=float, default=165.2, help="the card's rate in bfloat16")
    parser.add_argument("--share", type=float, default=0.4, help="the share of it that is reached")
    options = parser.parse_args()
    write_text(PAGE, text(options.teraflops, options.share))
