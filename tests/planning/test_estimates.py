"""What is planned without computing is what a real run of the same step takes."""

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from atomtune.planning.estimates import Adapted, Memory, decode_image, encode_image, quantized, size, tensors_of
from atomtune.planning.inputs import INPUTS, Step, step_inputs
from atomtune.planning.parts import Part
from atomtune.training.config import CustomizeConfig
from atomtune.training.methods import adapt
from atomtune.training.optimization import make_optimizer
from tests.adapters.families import FAMILIES

PIXART: dict[str, Any] = {
    "num_attention_heads": 4, "attention_head_dim": 32, "in_channels": 4, "out_channels": 8, "num_layers": 4,
    "cross_attention_dim": 128, "caption_channels": 64, "sample_size": 32, "use_additional_conditions": False,
}  # fmt: skip
STEP = Step(2, 4, 32, 32, 20, torch.float32)


def part(**changes: Any) -> Part:
    return Part("diffusers", "PixArtTransformer2DModel", PIXART | changes)


def config(**options: Any) -> CustomizeConfig:
    given: dict[str, Any] = {"images": Path("images"), "class_name": "dog", "out": Path("run"), "base": "tiny"}
    return CustomizeConfig(**given | {"num_atoms": 64, "density": 0.1} | options)


def real(chosen: Part, options: CustomizeConfig) -> Adapted:
    """The same on the CPU, with values."""
    base = getattr(diffusers, chosen.name).from_config(dict(chosen.config))
    if options.gradient_checkpointing:
        base.enable_gradient_checkpointing()
    model = adapt(base, options)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = make_optimizer(options, trained)
    adapted = Adapted(model, chosen, trained, optimizer, None)
    adapted.train(Step(1, 4, 32, 32, 20, torch.float32, "cpu"))  # the optimizer has its state after a step
    return adapted


def allocated(work: Any) -> int:
    """The peak of what torch's allocator gave out, by its own profiler."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        work()
    events = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


@pytest.mark.filterwarnings("ignore::UserWarning")  # the profiler's, of this torch
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    "options",
    [{}, {"target_modules": ("attn1.to_v",)}, {"method": "lora"}, {"mix_first": False, "optimizer": "CAME"}],
    ids=str,
)
def test_a_planned_step_takes_what_a_real_one_takes(options, checkpointing):
    """Counted by the same mode on real tensors, and measured by torch's profiler of memory."""
    chosen = config(gradient_checkpointing=checkpointing, **options)
    planned = Adapted.of(part(), chosen, torch.float32).train(STEP)
    on_cpu = real(part(), chosen)
    step = Step(2, 4, 32, 32, 20, torch.float32, "cpu")
    counted = on_cpu.train(step)
    measured = allocated(lambda: on_cpu.train(step))
    assert (planned.weights, planned.adapter) == (counted.weights, counted.adapter)
    assert planned.optimizer == pytest.approx(counted.optimizer, rel=0.01)  # beside a number for each parameter
    assert planned.activations == pytest.approx(counted.activations, rel=0.05)
    assert planned.activations == pytest.approx(measured, rel=0.05)
