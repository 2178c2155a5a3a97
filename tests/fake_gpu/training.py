"""Training on the card: whole runs, single steps against the CPU's, and PixArt-Σ's real shapes."""

from collections import Counter
from typing import Any

import pytest
import torch
from diffusers import PixArtTransformer2DModel
from peft import get_peft_model
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.testing import assert_close

import atomtune
from atomtune.adapters import AtomConfig, adapted_layers
from atomtune.bases import load_base
from atomtune.method.sigma import SIGMAS
from atomtune.storage.folders import load_adapter
from atomtune.tracing import trace
from atomtune.training.trainer import Trainer
from tests.adapters.tiny import CONFIG, atom_config, inputs, transformer, wake
from tests.fake_gpu.card import GPU, Card, moved, waits_of

QUICK: dict[str, Any] = {"class_name": "dog", "steps": 3, "batch_size": 2, "sample_every": 0, "report_to": "none"}
QUICK |= {"num_atoms": 16, "density": 0.25, "measure_every": 3, "device": "gpu"}
RUNS = [
    {"mixed_precision": "bf16", "gradient_checkpointing": True, "activation": "soft", "threshold_units": "scale"},
    {"activation": "jumprelu", "density_penalty": 0.1},
    {"activation": "batch_topk", "gradient_accumulation_steps": 2, "optimizer": "CAME"},
    {"density_start": 1.0, "l1": 0.1, "orthogonality": 0.1, "mix_first": False},
    {"method": "lora", "prior_preservation": True, "num_class_images": 1, "snr_gamma": 5.0},
]


@pytest.mark.parametrize("options", RUNS, ids=str)
def test_a_run_trains_on_the_card(options, base, images, tmp_path, monkeypatch, card):
    """From images to an adapter. Drawn on the way is nothing: that is in drawing.py."""
    monkeypatch.setattr(Trainer, "_sample", lambda self: [])
    waits = waits_of(card, Trainer, "_advance", monkeypatch)
    run: dict[str, Any] = QUICK | {"mixed_precision": "no"} | options
    atomtune.customize(images, base=base, out=tmp_path / "run", **run)
    pipe = load_base(base)
    pipe.to("gpu")
    assert next(load_adapter(pipe, tmp_path / "run").parameters()).device == GPU
    # After the first step, which is measured: the batch goes to the card, and the loss comes back.
    micro = run.get("gradient_accumulation_steps", 1)
    for step in waits[1:]:
        assert step.pop("_to_copy in steps.py") == 1, "the loss and the gradient's norm are read, at once"
        sent = Counter({what: times for what, times in step.items() if "objectives.py" in what})
        assert step == sent and sum(sent.values()) <= 4 * micro, "nothing but the batch is sent"


@pytest.mark.parametrize(
    "form, dtype",
    [({}, torch.bfloat16), *(
        (form, torch.float32) for form in ({}, {"mix_first": False}, {"target_modules": ["to_v"]})
    )],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("activation", SIGMAS)
def test_a_step_on_the_card_is_a_step_on_the_cpu(activation, form, dtype, card):
    """The same gradients, the same weights afterwards, and the same counts."""
    config = atom_config(activation=activation, threshold_units="scale", **form)
    on_cpu = wake(get_peft_model(transformer(dtype), config)).train()
    on_card = wake(get_peft_model(transformer(dtype), config)).train()
    on_card.load_state_dict(on_cpu.state_dict())
    on_card.to("gpu")
    results = []
    for model, device in ((on_cpu, "cpu"), (on_card, "gpu")):
        given = moved(inputs(dtype), device)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-2)
        with trace(model) as seen, sdpa_kernel(SDPBackend.MATH):  # the card's own: top-k's choice hangs on rounding
            model(**given, return_dict=False)[0].float().square().mean().backward()
        norm = torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        model(**given, return_dict=False)
        results.append([norm, [parameter.grad for parameter in trained], [layer.usage for layer in seen.layers]])
    near: Any = {"atol": 1e-5, "rtol": 1e-4} if dtype == torch.float32 else {"atol": 2e-2, "rtol": 2e-1}
    assert_close(moved(results[1], "cpu"), results[0], **near)


def test_a_step_at_the_real_shapes_of_pixart():
    """28 blocks, 1152 wide, in bf16, at 256 pixels; checkpointed. Nothing is computed."""
    sizes: dict[str, Any] = {
        "num_attention_heads": 16,
        "attention_head_dim": 72,
        "num_layers": 28,
        "cross_attention_dim": 1152,
        "caption_channels": 4096,
        "sample_size": 32,
    }
    with torch.device("meta"):
        base: Any = PixArtTransformer2DModel(**CONFIG | sizes)
    with Card(hollow=True) as card:
        base = base.to(torch.bfloat16).to_empty(device="gpu")
        base.enable_gradient_checkpointing()
        atoms = AtomConfig(target_modules=["attn1"], num_atoms=256, activation="batch_topk")
        model = get_peft_model(base, atoms).train()
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained)
        card.waits.clear()
        answer = model(
            hidden_states=torch.zeros(1, 4, 32, 32, device="gpu", dtype=torch.bfloat16),
            encoder_hidden_states=torch.zeros(1, 300, 4096, device="gpu", dtype=torch.bfloat16),
            timestep=torch.zeros(1, device="gpu"),
            added_cond_kwargs={"resolution": None, "aspect_ratio": None},
            return_dict=False,
        )[0]
        assert answer.shape == (1, 8, 32, 32) and answer.device == GPU
        answer.float().square().mean().backward()
        optimizer.step()
        assert not card.waits
    assert len(adapted_layers(model)) == 28 and all(parameter.grad is not None for parameter in trained)
