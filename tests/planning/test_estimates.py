"""What is planned without computing is what a real run of the same step takes, on miniatures of every base.

Two measures of a run on the CPU: what the same mode counts on tensors with values, and `allocated`, what torch's
allocator gave out, by its own profiler. Of the second one, blocks that convolutions and attention take and give back
themselves before they return are left out: these are another amount on every device.
"""

import copy
import functools
import itertools
import re
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch._C._profiler import _EventType
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import checkpoint

from atomtune.bases import denoiser
from atomtune.planning import estimates
from atomtune.planning.estimates import Adapted, quantized
from atomtune.planning.inputs import Step
from atomtune.planning.memory import adapters
from atomtune.planning.parts import Part, Parts, parts_of
from atomtune.planning.storages import Storages
from atomtune.sizes import Size
from atomtune.training.config import CustomizeConfig
from atomtune.training.methods import adapt
from atomtune.training.optimization import make_optimizer
from tests.bases.families import BASES

PIXART: dict[str, Any] = {
    "num_attention_heads": 4, "attention_head_dim": 32, "in_channels": 4, "out_channels": 8, "num_layers": 2,
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


def real(chosen: Part, options: CustomizeConfig, base: Any = None) -> Adapted:
    """The same on the CPU, with values."""
    if base is None:
        base = getattr(diffusers, chosen.name).from_config(dict(chosen.config))
    if options.gradient_checkpointing:
        # The state of random numbers, 5 kB a block, is on the CPU also where a card computes.
        base.enable_gradient_checkpointing(partial(checkpoint, use_reentrant=False, preserve_rng_state=False))
    model = adapt(base.requires_grad_(False), options)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return Adapted(model, chosen, trained, make_optimizer(options, trained), None)


KERNELS = re.compile(r"aten::(convolution|_scaled_dot_product_flash_attention_for_cpu)(_backward)?")


def allocated(work: Any) -> int:
    """The peak of what torch's allocator gave out, by its own profiler, but for what `KERNELS` gave back themselves."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        work()
    profiler: Any = seen.profiler
    events: list[tuple[int, int, int, int | None]] = []  # when, where, bytes, and the beginning of the kernel, if any

    def find(nodes: Any, kernel: int | None = None) -> None:
        for node in nodes:
            if node.tag == _EventType.Allocation:
                events.append((node.start_time_ns, node.extra_fields.ptr, node.extra_fields.alloc_size, kernel))
            inside = node.start_time_ns if kernel is None and KERNELS.fullmatch(node.name) else kernel
            find(node.children, inside)

    find(profiler.kineto_results.experimental_event_tree())
    changes, taken = [], {}  # of the bytes in use; the blocks in use, by where they are
    for _, where, size, kernel in sorted(events):
        if size < 0 and where in taken:
            number, its_kernel = taken.pop(where)
            if kernel is not None and kernel == its_kernel:
                changes[number], size = 0, 0
        elif size > 0:
            taken[where] = len(changes), kernel
        changes.append(size)
    return max(itertools.accumulate(changes))


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
    on_cpu.train(step)  # the optimizer has its state after a step
    counted = on_cpu.train(step)
    measured = allocated(lambda: on_cpu.train(step))
    assert (planned.weights, planned.adapter) == (counted.weights, counted.adapter)
    assert planned.optimizer == pytest.approx(counted.optimizer, rel=0.01)  # beside a number for each parameter
    assert planned.activations == pytest.approx(counted.activations, rel=0.05)
    assert planned.activations == pytest.approx(measured, rel=0.05)


every_base = pytest.mark.parametrize("name", [base.name for base in BASES])
SIZE = Size(128, 128)
ATOMS = 48
"""A multiple of the heads of each miniature: with others a card takes a kernel that a CPU does not have."""


@functools.cache
def opened(name: str) -> tuple[Any, Parts]:
    pipe = next(base for base in BASES if base.name == name).pipe()
    pipe.register_to_config(_name_or_path=name)
    return pipe, parts_of(pipe)


def compare(planned: int, work: Any) -> None:
    work()  # tables of positions are made at the first call
    with Storages("cpu") as seen:
        measured = allocated(work)
    assert planned == pytest.approx(seen.passing, rel=0.05)
    assert planned == pytest.approx(measured, rel=0.05)


@pytest.mark.filterwarnings("ignore::UserWarning")  # the profiler's, of this torch
@every_base
@torch.no_grad()
def test_encoding_and_decoding_take_what_is_planned(name):
    pipe, parts = opened(name)
    for part_name, part in parts.text_encoders.items():
        planned = estimates.encode_text(part, parts.tokens, torch.float32)[None]
        given: dict[str, Any] = {"output_hidden_states": not part.name.endswith("EncoderModel")}
        given["input_ids"] = torch.zeros(
            1, min(parts.tokens, part.config.get("max_position_embeddings") or 10**6)
        ).long()
        compare(planned.activations, partial(getattr(pipe, part_name), **given))
    side, frames = Size(64, 64), (1,) * (parts.autoencoder.name == "AutoencoderKLQwenImage")
    encoding, latents = estimates.encode_image(parts.autoencoder, side)
    drawn = torch.zeros(1, latents[0], *frames, *latents[1:])
    decoding = estimates.decode_image(parts.autoencoder, latents, torch.float32, None)
    compare(encoding.activations, lambda: pipe.vae.encode(torch.zeros(1, 3, *frames, *side.shape)))
    compare(decoding.activations, lambda: pipe.vae.decode(drawn.clone()))


@pytest.mark.filterwarnings("ignore::UserWarning")  # the profiler's, of this torch
@pytest.mark.parametrize("phase", ["training", "checkpointing", "drawing"])
@every_base
def test_a_step_of_every_base_takes_what_is_planned(name, phase):
    pipe, parts = opened(name)
    targets = next(iter(adapters(parts).values()))["target_modules"]  # attention, where the base can carry atoms there
    again = phase == "checkpointing"
    chosen = config(target_modules=tuple(targets), gradient_checkpointing=again, num_atoms=ATOMS)
    _, latents = estimates.encode_image(parts.autoencoder, SIZE)
    planned, step = (Step(2, *latents, 20, torch.float32, device) for device in ("meta", "cpu"))
    on_meta = Adapted.of(parts.denoiser, chosen, torch.float32)
    on_cpu = real(parts.denoiser, chosen, copy.deepcopy(denoiser(pipe)))
    if phase == "drawing":
        on_cpu.model.eval()
        with torch.no_grad():
            compare(on_meta.draw(planned, None), lambda: on_cpu.run(step))
    else:
        compare(on_meta.train(planned).activations, lambda: on_cpu.train(step))


def test_checkpointing_lowers_activations_and_nothing_else():
    plain, again = (
        Adapted.of(part(num_layers=4), config(gradient_checkpointing=each), torch.bfloat16).train(STEP_IN_HALF)
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
