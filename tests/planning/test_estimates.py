"""What is planned without computing is what a real run of the same step takes."""

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from atomtune.planning.estimates import Adapted, quantized
from atomtune.planning.inputs import Step
from atomtune.planning.parts import Part
from atomtune.training.config import CustomizeConfig
from atomtune.training.methods import adapt
from atomtune.training.optimization import make_optimizer

PIXART: dict[str, Any] = {
    "num_attention_heads": 4, "attention_head_dim": 32, "in_channels": 4, "out_channels": 8, "num_layers": 4,
    "cross_attention_dim": 128, "caption_channels": 64, "sample_size": 32, "use_additional_conditions": False,
}  # fmt: skip
STEP = Step(2, 4, 32, 32, 20, torch.float32)
STEP_IN_HALF = Step(2, 4, 32, 32, 20)


def part(**changes: Any) -> Part:
    return Part("diffusers", "PixArtTransformer2DModel", PIXART | changes)


def config(**options: Any) -> CustomizeConfig:
    given: dict[str, Any] = {"images": Path("images"), "class_name": "dog", "out": Path("run"), "base": "tiny"}
    # Dense enough that a CPU keeps what a card does: with fewer atoms a token it keeps less.
    return CustomizeConfig(**given | {"num_atoms": 64, "density": 0.2} | options)


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
    profiler: Any = seen.profiler
    events = [event for event in profiler.kineto_results.events() if event.name() == "[memory]"]
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


def test_checkpointing_lowers_activations_and_nothing_else():
    plain, again = (
        Adapted.of(part(), config(gradient_checkpointing=each), torch.bfloat16).train(STEP_IN_HALF)
        for each in (False, True)
    )
    assert again.activations < 0.5 * plain.activations
    assert (again.weights, again.adapter, again.optimizer) == (plain.weights, plain.adapter, plain.optimizer)


def test_quantized_weights_are_smaller_and_a_layer_needs_a_copy():
    adapted = Adapted.of(part(), config(), torch.bfloat16)
    whole = adapted.frozen()
    linear = [module.weight for module in adapted.model.modules() if isinstance(module, torch.nn.Linear)]
    weights, others = sum(each.nbytes for each in linear), whole.weights - sum(each.nbytes for each in linear)
    int8, nf4 = (quantized(whole, adapted.model, kind) for kind in ("int8", "nf4"))
    assert int8.weights == others + weights // 2  # of bfloat16
    assert nf4.weights == others + round(weights / 2 * (0.5 + 4 / 64))
    assert int8.activations == nf4.activations == max(each.nbytes for each in linear)
    assert (int8.adapter, int8.optimizer) == (whole.adapter, whole.optimizer)


@pytest.mark.parametrize("options", [{}, {"target_modules": ("attn1.to_v",)}], ids=str)
def test_activations_grow_with_the_tokens_and_not_with_their_square(options):
    """A card's attention kernels store no map of N × N, for attention atoms too."""
    adapted = Adapted.of(part(), config(**options), torch.bfloat16)
    small, large = (
        adapted.train(Step(1, 4, side, side, 20)).activations
        for side in (64, 128)  # 1,024 and 4,096 tokens
    )
    assert large < 4.1 * small
