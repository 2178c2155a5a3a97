"""What of accelerate's ways to split a model a run takes. Real shards in two processes: test_processes.py."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

import atomtune
from atomtune.training import sharding

FSDP2 = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}


@pytest.mark.parametrize(
    ("environment", "options", "sentence"),
    [
        ({"ACCELERATE_USE_MEGATRON_LM": "1"}, {}, "asks for Megatron-LM"),
        ({"ACCELERATE_USE_PARALLELISM_CONFIG": "yes"}, {}, "asks for a parallelism config"),
        ({"ACCELERATE_USE_FSDP": "true"}, {}, "asks for FSDP 1, and here .* --fsdp_version 2"),
        (FSDP2 | {"FSDP_OFFLOAD_PARAMS": "true"}, {}, "FSDP_OFFLOAD_PARAMS asks .* never run"),
        (FSDP2 | {"FSDP_RESHARD_AFTER_FORWARD": "FULL_SHARD"}, {}, "accelerate cannot use the settings of FSDP"),
        (FSDP2, {"mixed_precision": "fp16"}, "the precision cannot be fp16"),
        (FSDP2, {"offload": "model"}, "offload was never run with FSDP2"),
        (FSDP2, {"quantize": "int8"}, "quantize was never run with FSDP2"),
    ],
    ids=str,
)
def test_what_a_run_with_shards_cannot_do_is_refused_before_a_base_is_opened(
    run, monkeypatch, environment, options, sentence
):
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    with pytest.raises(atomtune.UserError, match=sentence):
        run(base="nowhere", **options)


def test_one_process_has_the_whole_base_and_says_so(run, monkeypatch, caplog):
    for variable, value in FSDP2.items():
        monkeypatch.setenv(variable, value)
    assert not run(steps=1)["sharded"]
    assert "ACCELERATE_USE_FSDP is not used" in caplog.text


def test_gradients_are_averaged_in_one_message():
    parameters = [torch.nn.Parameter(torch.zeros(shape)) for shape in ((2, 3), (4,), (1,))]
    for number, parameter in enumerate(parameters[:2]):
        parameter.grad = torch.full_like(parameter, float(number + 1))
    messages = []
    sharding.average_gradients(parameters, lambda tensor: messages.append(tensor) or tensor / 2)
    assert [len(message) for message in messages] == [10]
    assert [float(parameter.grad.sum()) for parameter in parameters[:2] if parameter.grad is not None] == [3, 4]
    assert parameters[2].grad is None


class Base(torch.nn.Module):
    """Its first tensor is its own, and one of the others trains."""

    _no_split_modules = ("Linear", "Missing")

    def __init__(self):
        super().__init__()
        self.place = torch.nn.Parameter(torch.zeros(3), requires_grad=False)
        self.frozen, self.trained = (torch.nn.Linear(2, 2) for _ in range(2))
        self.frozen.requires_grad_(False)


def test_what_trains_and_the_first_tensor_stay_whole():
    plugin = SimpleNamespace(transformer_cls_names_to_wrap=None)
    accelerator: Any = SimpleNamespace(device=torch.device("cpu"), state=SimpleNamespace(fsdp_plugin=plugin))
    model = Base()
    sharding.choose_shards(accelerator, model)
    (whole,) = plugin.ignored_modules
    assert [id(p) for p in whole.parameters()] == [id(p) for p in (model.place, *model.trained.parameters())]
    assert plugin.transformer_cls_names_to_wrap == ["Linear"]
    plugin.transformer_cls_names_to_wrap = ["Missing"]
    with pytest.raises(atomtune.UserError, match="set FSDP_TRANSFORMER_CLS_TO_WRAP"):
        sharding.choose_shards(accelerator, model)
