"""Running statistics move once per optimizer step, however many forward passes a step has."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from atomtune.adapters import adapted_layers
from atomtune.tracing import trace
from tests.adapters.tiny import atom_config, inputs, transformer, wake

OPTIONS: list[dict[str, Any]] = [
    {"activation": "soft", "threshold": 0.3, "threshold_units": "scale"},
    {"activation": "batch_topk"},
]


def statistics(model: Any) -> list[torch.Tensor]:
    found = []
    for layer in adapted_layers(model):
        σ: Any = layer.dictionary("default").sigma
        found.append((σ.levels if σ.activation == "batch_topk" else σ.spread).clone())
    return found


def half(given: dict[str, Any], row: int) -> dict[str, Any]:
    return {n: v[row : row + 1] if isinstance(v, torch.Tensor) else v for n, v in given.items()}


def adapted(options: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    return wake(get_peft_model(transformer(), atom_config(**options))).train()


def trained(model: Any, options: dict[str, Any], call: Any = None, batches: list | None = None) -> list[torch.Tensor]:
    """Three steps of a training loop that knows nothing of statistics; those that it leaves."""
    call, batches = model if call is None else call, batches or [inputs()]
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(3):
        for batch in batches:
            call(**batch, return_dict=False)[0].square().mean().div(len(batches)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return statistics(model)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_moves_statistics_once(options, reentrant):
    model = adapted(options)
    model.get_base_model().enable_gradient_checkpointing(
        lambda module, *args: checkpoint(module, *args, use_reentrant=reentrant)
    )
    if reentrant:  # it gives gradients only to what an input asks them of
        model.get_base_model().pos_embed.register_forward_hook(lambda _m, _a, out: out.requires_grad_())
    wanted = trained(adapted(options), options)
    for own, plain in zip(trained(model, options), wanted, strict=True):
        assert torch.equal(own, plain)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_accumulated_steps_move_statistics_once(options):
    """The same batch twice is the batch."""
    wanted = trained(adapted(options), options)
    for own, plain in zip(trained(adapted(options), options, batches=[inputs(), inputs()]), wanted, strict=True):
        assert_close(own, plain)  # the default of float32: gradients are added in two halves


def test_a_step_of_two_halves_sees_the_mean_of_both():
    options = OPTIONS[0]
    model, whole = adapted(options), adapted(options)
    for own, plain in zip(
        trained(model, options, batches=[half(inputs(), 0), half(inputs(), 1)])[:1], trained(whole, options)[:1]
    ):
        assert not torch.equal(own, torch.zeros_like(own))
        # The first layer's coefficients do not depend on λ; their encoder moves by a hundredth of a gradient a step.
        assert_close(own, plain, rtol=1e-2, atol=0)


def compare_compiled() -> None:
    for options in OPTIONS:
        model = adapted(options)
        compiled = torch.compile(model.get_base_model(), backend="eager")
        for own, plain in zip(trained(model, options, compiled), trained(adapted(options), options), strict=True):
            assert_close(own, plain)  # the default of float32: a compiler may order sums anew


def test_compiled_statistics_move_once():
    """In a process of its own, without jaxtyping's checks, which are not what a user compiles."""
    code = "from tests.training.test_statistics import compare_compiled; compare_compiled()"
    root = Path(__file__).parents[2]
    ended = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-3000:]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_forward_that_does_not_train_leaves_statistics_alone(options):
    model = adapted(options)
    before = trained(model, options)
    with torch.no_grad():
        model(**inputs())
    model.eval()
    model(**inputs())
    other = torch.nn.Parameter(torch.zeros(2))
    other.grad = torch.ones(2)
    model.train()(**inputs())
    torch.optim.SGD([other]).step()  # another model's
    for now, then in zip(statistics(model), before, strict=True):
        assert torch.equal(now, then)


def test_a_repeated_forward_is_not_traced_twice():
    model = adapted(OPTIONS[0])
    model.get_base_model().enable_gradient_checkpointing()
    with trace(model) as seen:
        model(**inputs(), return_dict=False)[0].square().mean().backward()
    assert [layer.tokens for layer in seen.layers] == [2 * 16, 2 * 16]


@pytest.mark.slow
def test_two_processes_follow_the_same_statistics():
    script = Path(__file__).with_name("statistics_of_two.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    environment = os.environ | {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, env=environment, cwd=script.parents[2], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-3000:]
