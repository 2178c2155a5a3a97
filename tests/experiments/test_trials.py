"""The objectives that were tried for moji, against their papers' formulas."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler, PixArtTransformer2DModel

pytest.importorskip("resvg_py", reason="pretraining renders with resvg-py, of the extra `dev`")

from atomtune.moji.pipeline import SCHEDULER, TRANSFORMER
from experiments.moji_trials.run import GAMMA, Alignment, weights


def test_min_snr_weights_of_v_prediction():
    schedule = DDPMScheduler(**SCHEDULER)
    batches: Any = SimpleNamespace(noise_schedule=schedule)
    t = torch.tensor([0, 250, 999])
    betas = torch.linspace(SCHEDULER["beta_start"], SCHEDULER["beta_end"], 1000, dtype=torch.float64)
    alpha_bar = (1 - betas).cumprod(0)
    snr = alpha_bar / (1 - alpha_bar)
    w = torch.minimum(snr, torch.tensor(GAMMA)) / (snr + 1)
    torch.testing.assert_close(weights(batches, t).double(), (w / w.mean())[t], rtol=1e-3, atol=0)  # 1 - ᾱ of float32


def test_alignment_is_minus_the_mean_cosine_of_projected_tokens_and_features():
    torch.manual_seed(0)
    shape: dict[str, Any] = TRANSFORMER | {"num_layers": 4}
    model: Any = PixArtTransformer2DModel(**shape)
    align = Alignment(model)
    seen = []
    model.transformer_blocks[2].register_forward_hook(lambda _block, _inputs, hidden: seen.append(hidden))
    x, text, y = torch.randn(2, 4, 16, 16), torch.randn(2, 5, 384), torch.randn(2, 64, 1280)
    model(x, text, torch.tensor([1, 500]), return_dict=False)
    (h,) = seen
    p = align.projector(h).double()
    expected = -((p * y).sum(-1) / (p.norm(dim=-1) * y.double().norm(dim=-1))).mean()
    assert align(y).item() == pytest.approx(expected.item(), abs=1e-3)  # the projector runs in bfloat16
    align(y).backward()
    assert all(block.attn1.to_q.weight.grad is not None for block in model.transformer_blocks[:3])
    assert model.transformer_blocks[3].attn1.to_q.weight.grad is None  # only what lies below is taught
