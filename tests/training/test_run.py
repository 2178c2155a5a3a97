"""A run as a whole: what it is known by, how a finished one goes on, and that what is recorded is what ran."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.utils import DynamoBackend
from PIL import Image
from safetensors.torch import load_file, save_file

import atomtune
from atomtune import bases
from atomtune.training import run as run_module
from atomtune.training import trainer
from tests.training.quick import state, weights


@pytest.fixture
def no_base(monkeypatch):
    """A base that is opened fails the test."""
    monkeypatch.setattr(bases, "BaseParts", None)


def config_of(out: Path) -> dict:
    return yaml.safe_load((out / "config.yaml").read_text())


# -- going on ---------------------------------------------------------------------------------------------------------


def test_a_finished_run_is_not_trained_again(run, monkeypatch):
    summary = run()
    monkeypatch.setattr(trainer.Trainer, "_advance", None)
    assert run() == summary


def test_a_run_from_before_an_option_was_there_is_the_same_run(run, tmp_path):
    summary, file = run(), tmp_path / "run" / "config.yaml"
    old = yaml.safe_load(file.read_text())
    del old["total_atoms"], old["sample_prompts"]
    file.write_text(yaml.safe_dump(old))
    (tmp_path / "run" / "logs" / "run.json").unlink()
    assert run() == summary


def test_a_run_with_options_that_are_not_there_any_more_is_refused(run, tmp_path):
    run()
    with (tmp_path / "run" / "config.yaml").open("a") as file:
        file.write("compact: false\n")
    with pytest.raises(atomtune.UserError, match=r"another version of atomtune, with options .* \(compact\): train in"):
        run(steps=8)
    assert run(overwrite=True)["steps"] == 4


@pytest.mark.parametrize("options", [{}, {"lr_scheduler": "constant_with_warmup", "lr_warmup_steps": 6}])
def test_a_finished_run_goes_on_to_the_bits_of_one_that_was_longer_from_the_start(run, tmp_path, options):
    run("whole", steps=8, sample_every=4, **options)
    run(sample_every=2, **options)
    summary = run(steps=8, sample_every=0, checkpoint_every=3, checkpoints_total_limit=1, report_to="none", **options)
    out = tmp_path / "run"
    for number in (0, 1):  # which the other run did not draw
        (out / "samples" / f"step-000002-{number}.png").unlink()
    assert state(out) == state(tmp_path / "whole")
    assert summary["steps"] == 8
    assert config_of(out)["steps"] == 8
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["step-000008"]


def test_a_run_goes_on_with_the_threads_that_it_began_with(run, tmp_path, monkeypatch):
    """Others would give other bits."""
    before, seen = torch.get_num_threads(), []
    monkeypatch.setattr(run_module, "idle_threads", lambda _: before + 1)
    run()
    assert json.loads((tmp_path / "run" / "logs" / "run.json").read_text())["threads"] == before + 1
    advance = trainer.Trainer._advance
    monkeypatch.setattr(trainer.Trainer, "_advance", lambda self: (seen.append(torch.get_num_threads()), advance(self)))
    monkeypatch.setattr(run_module, "idle_threads", lambda _: 1)
    run(steps=5)
    assert seen == [before + 1]
    assert torch.get_num_threads() == before


def test_epochs_go_on_too(run):
    assert run(steps=None, epochs=2)["steps"] == 3  # three images, two in a step
    assert run(steps=None, epochs=4)["steps"] == 6


def test_the_rate_is_that_of_the_longer_schedule(run, tmp_path):
    run(lr_scheduler="linear", steps=2)  # ends at a rate of zero
    before = weights(tmp_path / "run")
    run(lr_scheduler="linear", steps=4)
    last = json.loads((tmp_path / "run" / "checkpoints" / "step-000004" / "state.json").read_text())
    assert weights(tmp_path / "run") != before
    assert '["_last_lr", [0.0]]' in json.dumps(last)


def test_the_summary_stays_true_until_the_longer_run_has_finished(run, tmp_path, monkeypatch):
    summary, out = run(checkpoints_total_limit=1), tmp_path / "run"
    sample = trainer.Trainer._sample

    def looked_at(self):
        assert json.loads((out / "summary.json").read_text()) == summary
        assert Path(summary["checkpoint"]).is_dir()
        return sample(self)

    monkeypatch.setattr(trainer.Trainer, "_sample", looked_at)
    assert run(steps=8, checkpoints_total_limit=1)["checkpoint"].endswith("step-000008")
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["step-000008"]


def test_a_run_does_not_go_back(run, monkeypatch):
    run()
    monkeypatch.setattr(bases, "BaseParts", None)
    with pytest.raises(atomtune.UserError, match="has trained 4 steps already, and 3 are asked for"):
        run(steps=3)


def test_a_finished_run_without_its_checkpoints_says_how_to_go_on(run, tmp_path):
    summary = run()
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    with pytest.raises(
        atomtune.UserError, match=r"because its checkpoints were removed: .* --init-adapter .*run to start"
    ):
        run(steps=8)
    assert run() == summary


def test_what_only_watches_says_that_a_finished_run_does_not_heed_it(run, caplog):
    run()
    caplog.clear()  # of what it says of the miniature's images
    run(sample_prompts=("a sks dog on snow",))
    (message,) = caplog.messages
    assert "finished, so this changes nothing before more steps: sample_prompts [] there and" in message


# -- what a run is known by -------------------------------------------------------------------------------------------


def test_the_same_content_by_another_path_is_the_same_run(run, base, images, tmp_path):
    run("first", steps=2)
    shutil.copytree(tmp_path / "first" / "adapter", tmp_path / "start")
    summary = run(init_adapter=tmp_path / "first")
    shutil.copytree(images, tmp_path / "elsewhere")
    shutil.copytree(base, tmp_path / "base")
    moved = {"images": tmp_path / "elsewhere", "base": str(tmp_path / "base"), "init_adapter": tmp_path / "start"}
    assert run(**moved) == summary
    assert run(**moved, steps=6)["steps"] == 6
    assert config_of(tmp_path / "run")["base"] == str(tmp_path / "base")


def test_what_may_not_change_is_named_and_the_advice_destroys_nothing(run, tmp_path):
    run()
    out, before = tmp_path / "run", weights(tmp_path / "run")
    changes = "learning_rate 0.0001 there and 0.5 now, seed 0 there and 1 now"
    with pytest.raises(atomtune.UserError) as error:
        run(learning_rate=0.5, seed=1, steps=8)
    assert str(error.value) == (
        f"{out} holds another run ({changes}): train in another folder, with --init-adapter {out} to start from what "
        "it has learnt (--overwrite starts over here)."
    )
    assert weights(out) == before
    assert run("next", learning_rate=0.5, init_adapter=out)["steps"] == 4
    run(learning_rate=0.5, overwrite=True)
    assert weights(out) != before
    assert config_of(out)["overwrite"] is False  # or starting again with this file would start over


def test_other_images_and_another_base_are_another_run(run, base, images, tmp_path):
    run()
    shutil.copytree(base, other := tmp_path / "other")
    file = other / "transformer" / "diffusion_pytorch_model.safetensors"
    save_file({name: tensor + 1 for name, tensor in load_file(file).items()}, file, {"format": "pt"})
    with pytest.raises(atomtune.UserError, match=r"holds another run \(on a base with other weights than .*other"):
        run(base=str(other))
    Image.new("RGB", (64, 64)).save(images / "0.png")
    with pytest.raises(
        atomtune.UserError, match=r"\(other images, captions or repeats there than in .* --init-adapter"
    ):
        run()


def test_another_number_of_processes_is_another_run(run, tmp_path):
    run()
    file = tmp_path / "run" / "logs" / "run.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"processes": 2}))
    with pytest.raises(atomtune.UserError, match="processes 2 there and 1 now"):
        run()


# -- outside settings -------------------------------------------------------------------------------------------------

OUTSIDE = {
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4",
    "ACCELERATE_MIXED_PRECISION": "bf16",
    "ACCELERATE_DYNAMO_BACKEND": "INDUCTOR",
    "FSDP_ACTIVATION_CHECKPOINTING": "true",
}


def test_what_is_recorded_is_what_ran_whatever_the_environment_says(run, tmp_path, monkeypatch, caplog):
    expected = run("plain")
    said_of_the_images = [*caplog.messages]
    for variable, value in OUTSIDE.items():
        monkeypatch.setenv(variable, value)
    accelerators, make = [], run_module._accelerator
    monkeypatch.setattr(run_module, "_accelerator", lambda config: accelerators.append(make(config)) or accelerators[0])
    summary = run()
    assert weights(tmp_path / "run") == weights(tmp_path / "plain")
    assert (summary["processes"], summary["device"], summary["dtype"]) == (1, expected["device"], "float32")
    (accelerator,) = accelerators
    assert accelerator.mixed_precision == "no"
    assert accelerator.gradient_accumulation_steps == 1
    assert accelerator.state.dynamo_plugin.backend == DynamoBackend.NO
    told = [message for message in caplog.messages if message not in said_of_the_images]
    assert [message.split("=")[0] for message in told] == sorted(OUTSIDE, key=caplog.text.index)
    assert len(told) == len(OUTSIDE)


# -- refused before a base is opened ----------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_base")
@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"optimizer": "LBFGS"}, "LBFGS with the options {} cannot train an adapter"),
        ({"optimizer": "SparseAdam"}, "SparseAdam with the options {} cannot train an adapter"),
        ({"optimizer": "Magic"}, "there is no optimizer 'Magic'"),
        ({"optimizer": "Optimizer"}, "Optimizer does not take {}"),
        ({"optimizer_options": {"speed": 9}}, "AdamW does not take {'speed': 9}"),
        ({"optimizer_options": {"differentiable": True}}, "AdamW with the options {'differentiable': True} cannot"),
        ({"lr_scheduler": "polynomial", "learning_rate": 1e-9}, "lr_scheduler polynomial: "),
        ({"report_to": "nosuch"}, "there is no tracker 'nosuch': expected none, all, aim"),
        ({"report_to": "dvclive"}, "the tracker 'dvclive' is not installed"),
    ],
    ids=str,
)
def test_names_and_options_are_refused_before_the_base_is_opened(run, tmp_path, options, sentence):
    with pytest.raises(atomtune.UserError) as error:
        run(**options)
    assert sentence in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("no_base")
def test_an_out_that_is_a_file_is_refused_before_the_base_is_opened(run, tmp_path):
    (tmp_path / "run").write_text("mine")
    with pytest.raises(atomtune.UserError, match=r"run cannot be a folder, because .*run is a file"):
        run(overwrite=True)
    assert (tmp_path / "run").read_text() == "mine"


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")
@pytest.mark.parametrize("options", [{"method": "dora"}, {"activation": "jumprelu", "threshold": 0.1}])
@pytest.mark.usefixtures("no_base")
def test_an_optimizer_of_matrices_is_refused_where_vectors_train(run, options):
    with pytest.raises(atomtune.UserError, match=r"Muon does not take \{\}: .*2D"):
        run(optimizer="Muon", **options)
