"""Whole runs on a miniature PixArt-Σ: what they write, how they continue, and how they stop."""

import gc
import json
import math
import resource
import shutil

import pytest
import torch
import yaml
from diffusers import AutoencoderKL
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import T5EncoderModel

import atomtune
from atomtune.bases import load_base
from atomtune.moji import random_pipeline
from atomtune.sampling import read_settings
from atomtune.storage.folders import load_adapter
from atomtune.storage.reading import adapter_info
from atomtune.training import configure, steps, trainer
from tests.tiny_pixart import save_tiny_pixart
from tests.training.quick import QUICK, weights


@pytest.fixture
def small_files():
    """A disk on which no file can grow beyond 40 kB."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_what_a_run_writes(run, base, tmp_path):
    summary = run(sample_every=3, sample_prompts=("a sks dog", "a sks dog on snow"), measure_every=2)
    out = tmp_path / "run"
    assert {path.name for path in out.iterdir()} == {
        "adapter", "samples", "samples.png", "config.yaml", "summary.json", "checkpoints", "logs", "atomtune-files.txt",
    }  # fmt: skip
    assert summary == json.loads((out / "summary.json").read_text())
    assert summary["steps"] == 4
    assert summary["images"] == 3
    assert summary["active_per_token"] == 10  # round(0.04 * 256)
    assert summary["density"] == 10 / 256
    assert 0 < summary["live_atoms"] <= 512
    assert summary["trainable_parameters"] == 2 * 2 * 256 * 16
    assert summary["adapter_bytes"] == len(weights(out))
    assert configure(**yaml.safe_load((out / "config.yaml").read_text())).to_dict() == yaml.safe_load(
        (out / "config.yaml").read_text()
    )
    samples = sorted(path.name for path in (out / "samples").iterdir())
    assert samples == ["step-000003-0.png", "step-000003-1.png", "step-000004-0.png", "step-000004-1.png"]
    assert read_settings(out / "samples" / samples[1])["prompt"] == "a sks dog on snow"
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == ["step-000002", "step-000004"]
    info = adapter_info(out)
    assert (info.kind, info.base) == ("ATOMS", base)
    assert (info.metadata["token"], info.metadata["class_name"]) == ("sks", "dog")
    card = (out / "adapter" / "README.md").read_text()
    assert card.split("```python\n")[1].startswith("import atomtune\n")
    events = EventAccumulator(str(out / "logs" / "customize")).Reload()
    assert len(events.Scalars("loss")) == 4
    assert load_adapter(load_base(base), out / "checkpoints" / "step-000002" / "adapter")


@pytest.mark.parametrize(
    "options",
    [
        {"method": "atoms", "lr_scheduler": "cosine", "lr_warmup_steps": 1},
        {"method": "lora", "optimizer": "CAME", "caption_dropout": 0.5, "gradient_accumulation_steps": 2},
        {"method": "dora", "optimizer": "SGD", "optimizer_options": {"momentum": 0.9}, "snr_gamma": 5.0},
        {"method": "oft", "mixed_precision": "bf16", "gradient_checkpointing": True},
        {"method": "atoms", "target_modules": ("to_v",), "prior_preservation": True, "num_class_images": 2},
    ],
    ids=lambda options: options["method"],
)
def test_every_method_and_option_continues_to_the_same_bits(run, tmp_path, options):
    run("whole", **options)
    run("stopped", **options)
    stopped = tmp_path / "stopped"
    trained = weights(stopped)
    for name in ("adapter", "checkpoints/step-000004"):  # as if it had been killed after step 2
        shutil.rmtree(stopped / name)
    (stopped / "summary.json").unlink()
    run("stopped", **options)
    assert weights(stopped) == trained == weights(tmp_path / "whole")
    moved = [tensor for name, tensor in load_file(stopped / "adapter" / "adapter_model.safetensors").items()]
    assert any(tensor.is_floating_point() and tensor.abs().max() > 0 for tensor in moved)


def test_training_lowers_the_loss(run, images):
    for file in sorted(images.iterdir())[1:]:
        file.unlink()
    first = run("one", steps=1, batch_size=32)["loss"]
    assert run("many", steps=60, learning_rate=3e-3, batch_size=8)["loss"] < 0.9 * first


def test_nothing_but_the_denoiser_is_in_memory_while_training(run, monkeypatch):
    found = []
    advance = trainer.Trainer._advance

    def parts():
        gc.collect()
        return {id(thing) for thing in gc.get_objects() if type(thing) in (T5EncoderModel, AutoencoderKL)}

    before = parts()  # of other tests

    def count(self):
        found.append(parts() - before)
        advance(self)

    monkeypatch.setattr(trainer.Trainer, "_advance", count)
    run(sample_every=1)
    assert found == [set()] * 4


def test_the_dropout_of_a_base_follows_from_the_seed_too(run, tmp_path):
    base = save_tiny_pixart(tmp_path / "base")
    file = base / "transformer" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"dropout": 0.5}))
    run("one", base=str(base))
    torch.rand(3)  # somebody else's draw between two runs
    run("two", base=str(base), steps=2)
    run("two", base=str(base))
    assert weights(tmp_path / "one") == weights(tmp_path / "two")


def test_the_order_sees_every_image_once_an_epoch(run, monkeypatch):
    seen = []
    images = trainer.Trainer._images
    monkeypatch.setattr(trainer.Trainer, "_images", lambda self, micro: seen.append(images(self, micro)) or seen[-1])
    run(steps=None, epochs=4, batch_size=1, gradient_accumulation_steps=2)
    order = [image for batch in seen for image in batch]
    epochs = [order[start : start + 3] for start in range(0, 12, 3)]
    assert all(sorted(epoch) == [0, 1, 2] for epoch in epochs)
    assert len(set(map(tuple, epochs))) > 1


def test_class_images_are_drawn_once(run, tmp_path):
    options = {"prior_preservation": True, "num_class_images": 2, "class_prompt": "a dog on snow"}
    run(**options)
    folder = tmp_path / "run" / "class_images"
    drawn = {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}
    assert sorted(drawn) == ["0000.png", "0001.png"]
    assert read_settings(folder / "0000.png")["prompt"] == "a dog on snow"
    (tmp_path / "run" / "summary.json").unlink()
    run(**options)
    assert {file.name: file.stat().st_mtime_ns for file in folder.iterdir()} == drawn


def test_a_loss_that_is_not_a_number_stops_and_keeps_the_last_good_checkpoint(run, tmp_path):
    with pytest.raises(
        atomtune.UserError,
        match=r"not a number any more, first in .*L\d+ \(.*attn.\), at step \d+; the last good checkpoint is .*step-",
    ):
        run(learning_rate=1e18, steps=50, checkpoint_every=1)
    out = tmp_path / "run"
    for checkpoint in (out / "checkpoints").iterdir():
        tensors = load_file(checkpoint / "adapter" / "adapter_model.safetensors")
        assert all(tensor.isfinite().all() for tensor in tensors.values())
    assert not (out / "adapter").exists()


def test_nan_before_any_checkpoint(run, monkeypatch):
    monkeypatch.setattr(steps, "prediction_loss", lambda prediction, noised: prediction.sum((1, 2, 3)) * math.nan)
    with pytest.raises(
        atomtune.UserError, match="the loss is not a number any more, at step 1; there was no checkpoint yet"
    ):
        run()


@pytest.mark.usefixtures("small_files")
def test_no_disk_space_during_a_save(run, tmp_path):
    with pytest.raises(atomtune.UserError, match=r"could not write .*step-000002.*make room"):
        run()
    out = tmp_path / "run"
    assert list((out / "checkpoints").iterdir()) == []
    assert not (out / "adapter").exists()


def test_a_run_continues_after_the_disk_has_room_again(run, request, tmp_path):
    run("whole", num_atoms=128)
    resource_before = resource.getrlimit(resource.RLIMIT_FSIZE)
    request.getfixturevalue("small_files")
    with pytest.raises(atomtune.UserError, match="make room"):
        run(num_atoms=128)
    resource.setrlimit(resource.RLIMIT_FSIZE, resource_before)
    run(num_atoms=128)
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"optimizer": "Magic"}, "there is no optimizer 'Magic': expected AdamW, CAME or a class of torch.optim."),
        ({"optimizer_options": {"speed": 9}}, "AdamW does not take {'speed': 9}"),
        ({"lr_scheduler": "magic"}, "lr_scheduler must be one of constant, constant_with_warmup, linear"),
        ({"method": "lora", "target_modules": ("magic",)}, "this base has no linear layer in magic"),
        ({"target_modules": ("magic",)}, "magic"),
        ({"base": "nowhere"}, "there is no base model 'nowhere'"),
        ({"images": "nowhere"}, "there is no folder 'nowhere'"),
    ],
)
def test_bad_options_are_refused_in_a_sentence(base, images, tmp_path, options, sentence):
    options = {**QUICK, "images": images, "base": base, "out": tmp_path / "run", **options}
    with pytest.raises(atomtune.UserError) as error:
        atomtune.customize(configure(**options))
    assert sentence in str(error.value)
    assert not list((tmp_path / "run").glob("*"))


def test_a_base_that_predicts_v_or_flows(run, tmp_path):
    for name, options in {
        "v": {"prediction_type": "v_prediction"},
        "flow": {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0},
    }.items():
        base = str(save_tiny_pixart(tmp_path / name, **options))
        assert math.isfinite(run(f"run-{name}", base=base)["loss"])


def test_other_families_of_pipelines(run, tmp_path):
    from tests.training.tiny_others import stable_diffusion, stable_diffusion_3

    for make, targets in ((stable_diffusion, ("attn1",)), (stable_diffusion_3, ("to_v",))):
        make().save_pretrained(tmp_path / make.__name__)
        base = str(tmp_path / make.__name__)
        assert math.isfinite(run(f"run-{make.__name__}", base=base, target_modules=targets)["loss"])


def test_the_seed_decides_everything(run, tmp_path):
    for out, seed in (("a", 0), ("b", 1)):
        run(out, seed=seed)
    torch.manual_seed(99)
    run("c")
    assert weights(tmp_path / "a") == weights(tmp_path / "c") != weights(tmp_path / "b")


def test_moji_by_its_name_and_recipe(images, tmp_path, monkeypatch):
    monkeypatch.setattr("atomtune.moji.load", lambda *args: random_pipeline())
    options = {"steps": 2, "preserve": False, "floor": 0.0}
    summary = atomtune.customize(images, class_name="dog", out=tmp_path / "run", **options)
    assert (summary["base"], summary["resolution"], summary["method"]) == ("moji", 64, "atoms")
    assert summary["trainable_parameters"] == 16 * 2 * 256 * 256  # the values of self- and cross-attention
    pipe = load_base("moji")
    assert load_adapter(pipe, tmp_path / "run") is pipe.transformer
