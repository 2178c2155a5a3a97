"""Pretraining moji on the card: the same step as on the CPU, and nothing waits for the card."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import PixArtTransformer2DModel
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.testing import assert_close

pytest.importorskip("resvg_py", reason="pretraining renders with resvg-py, of the extra `dev`")

from atomtune.moji.names import SEEN_NAMES
from atomtune.moji.pipeline import TRANSFORMER
from atomtune.moji.scenes import SIZES
from pretraining import batches, bundle, transformer
from pretraining.drawings import Drawings
from tests.fake_gpu.card import CPU, GPU, Card

NAMES = SEEN_NAMES[:2]
STEPS, BATCH = 3, 4


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A bundle of two names, which are all there are."""
    numbers = np.random.default_rng(0)
    arrays = {
        f"{name}|noto|{pixels}": numbers.integers(0, 256, (pixels, pixels, 4), np.uint8)
        for name in NAMES
        for pixels in SIZES.values()
    }
    np.savez(tmp_path / "drawings.npz", allow_pickle=False, **arrays)
    few = Drawings(tmp_path / "drawings.npz")
    bundle.write(tmp_path, few)
    monkeypatch.setattr(batches, "SEEN_NAMES", NAMES)
    return tmp_path


def trained(folder, device, waits=None) -> tuple[torch.Tensor, dict[str, torch.Tensor], Counter[str]]:
    """Losses and weights of a few steps. Of `waits` those of the last step are left."""
    torch.manual_seed(0)
    config: dict[str, Any] = TRANSFORMER | {"num_layers": 1}
    model = PixArtTransformer2DModel(**config).to(device)
    optimizer = transformer.optimizer(model)
    made = batches.CardBatches(transformer.trained_autoencoder(), folder, device)
    run = made.running(lambda batch: transformer.step(model, optimizer, batch))
    losses = []
    for _, inputs in zip(range(STEPS), made.inputs(0, BATCH)):
        (Counter() if waits is None else waits).clear()
        losses.append(run(inputs).clone())
    last = Counter(waits)
    return torch.stack(losses).cpu(), {name: weight.detach().cpu() for name, weight in model.named_parameters()}, last


def test_steps_of_pretraining_on_the_card_are_those_on_the_cpu(folder, monkeypatch):
    plain = torch.Generator

    class OfTheCard(plain):
        device = GPU

    monkeypatch.setattr(torch, "Generator", lambda device=CPU: OfTheCard() if device == GPU else plain(device))
    monkeypatch.setattr("os.cpu_count", lambda: 1)  # no processes beside this one
    for module in (batches, bundle, transformer):  # bfloat16 of a CPU is not that of the card
        monkeypatch.setattr(module, "autocast", lambda *_: torch.autocast("cpu", enabled=False))
    with sdpa_kernel(SDPBackend.MATH):  # which the fake card has too: sums in float32 depend on their order
        losses, weights, _ = trained(folder, CPU)
    with Card(generators=True) as card:
        found, there, waits = trained(folder, GPU, card.waits)
    assert_close(found, losses, atol=1e-5, rtol=1e-5)
    for name, weight in weights.items():
        assert_close(there[name], weight, atol=1e-5, rtol=1e-5, msg=name)
    assert waits == {"copy_ in elsewhere": 3}, "rows, tokens and mask of the batch are sent, from pinned memory"
