"""What of DeepSpeed's settings a run takes. Real shards in two processes: test_processes.py."""

import json

import pytest

import atomtune
from atomtune.training import zero

STAGE = "ACCELERATE_DEEPSPEED_ZERO_STAGE"
ASKED = {"ACCELERATE_USE_DEEPSPEED": "true"}
ZERO3 = ASKED | {STAGE: "3"}


@pytest.fixture
def asked(monkeypatch):
    """Set variables of accelerate's environment; DeepSpeed is there."""

    def asked(environment):
        monkeypatch.setattr(zero, "find_spec", lambda name: name)
        for variable, value in environment.items():
            monkeypatch.setenv(variable, value)

    return asked


@pytest.mark.parametrize(
    ("environment", "options", "sentence"),
    [
        (ZERO3 | {"ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": "cpu"}, {}, "offload_param_device=cpu asks .*never run"),
        (ZERO3, {"offload": "model"}, "offload was never run with ZeRO-3"),
        (ZERO3, {"quantize": "int8"}, "quantize was never run with ZeRO-3"),
        (ASKED | {"ACCELERATE_DEEPSPEED_CONFIG_FILE": "no/such.json"}, {}, "accelerate cannot use the settings of Dee"),
    ],
    ids=str,
)
def test_what_zero3_cannot_do_is_refused_before_a_base_is_opened(run, asked, environment, options, sentence):
    asked(environment)
    with pytest.raises(atomtune.UserError, match=sentence):
        run(base="nowhere", **options)


def test_zero3_without_deepspeed_is_refused(run, asked, monkeypatch):
    asked(ZERO3)
    monkeypatch.setattr(zero, "find_spec", lambda name: None)
    with pytest.raises(atomtune.UserError, match="needs DeepSpeed, which is not installed: pip install deepspeed"):
        run(base="nowhere")


@pytest.mark.parametrize(
    ("stage", "sentence"),
    [("2", "ZeRO stage 2 shares out gradients"), ("3", "ACCELERATE_USE_DEEPSPEED is not used: the one process")],
)
def test_what_shards_nothing_says_so(run, asked, caplog, stage, sentence):
    asked(ASKED | {STAGE: stage})
    assert not run(steps=1)["sharded"]
    assert sentence in caplog.text
    assert "settings" not in caplog.text


def test_settings_that_are_not_used_are_named(run, asked, caplog, tmp_path):
    zero_optimization = {"stage": 2, "offload_optimizer": {"device": "cpu"}, "zero_quantized_weights": True}
    settings = {
        "fp16": {"enabled": True}, "bf16": {"enabled": "auto"}, "gradient_clipping": 0.5, "train_batch_size": 2,
        "optimizer": {"type": "AdamW"}, "zero_optimization": zero_optimization | {"zero_hpz_partition_size": 1},
    }  # fmt: skip
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    asked(ASKED | {"ACCELERATE_DEEPSPEED_CONFIG_FILE": str(tmp_path / "settings.json")})
    run(steps=1)
    names = "fp16, gradient_clipping, optimizer, zero_quantized_weights, offload_optimizer"
    assert f"not used, because the run has its own: {names}\n" in caplog.text


def test_processes_that_do_not_know_of_each_other_are_refused(run, monkeypatch):
    """`accelerate launch --use_deepspeed` does not say itself that there are only CPUs."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(atomtune.UserError, match="lets each train alone, into one folder: on CPUs set ACCELERATE_USE"):
        run(base="nowhere")
