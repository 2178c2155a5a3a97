"""Adapters on a quantized base: they learn, are saved, draw, and are not merged into it."""

import pytest
import torch
from safetensors.torch import load_file

import atomtune
from atomtune import sampling
from atomtune.bases import denoiser, load_base
from atomtune.cli import main
from tests.bases.families import SIZE
from tests.bases.test_families import every_base, picture
from tests.training.quick import weights

METHODS = [
    {"target_modules": ("attn1",)},
    {"target_modules": ("attn1.to_v",)},
    {"method": "lora"},
    {"method": "dora"},
    {"method": "oft", "oft_blocks": 2},
]
LEARN = {"steps": 30, "learning_rate": 1e-2, "num_atoms": 16, "density": 0.25, "checkpoint_every": 30}


@pytest.mark.parametrize("options", METHODS, ids=lambda options: "-".join(map(str, options.values())))
def test_an_adapter_learns_on_an_int8_base_is_saved_and_draws(options, run, base, tmp_path):
    summary = run(quantize="int8", **LEARN | options)
    assert summary["held_loss"] < 0.95 * summary["held_loss_before"]
    saved = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    assert all(type(tensor) is torch.Tensor and not tensor.isnan().any() for tensor in saved.values())

    pipe = load_base(base, quantize="int8")
    before = atomtune.generate(pipe, "a sks dog", steps=2)[0].image
    model = atomtune.load_adapter(pipe, tmp_path / "run")
    after = atomtune.generate(pipe, "a sks dog", steps=2)[0].image
    assert before.tobytes() != after.tobytes()
    sentence = "cannot be merged into the base weights" if model.peft_type == "ATOMS" else "merged into quantized weig"
    for merge in (model.merge_and_unload, model.merge_adapter):
        with pytest.raises(atomtune.UserError, match=sentence):
            merge()
    denoiser(pipe).unload()
    atomtune.load_adapter(load_base(base), tmp_path / "run")  # nor is it bound to the quantized one


def test_atoms_learn_on_an_fp8_base(run):
    summary = run(quantize="fp8", **LEARN)
    assert summary["held_loss"] < 0.95 * summary["held_loss_before"]


def test_a_stopped_run_on_a_quantized_base_goes_on_to_the_same_bits(run, tmp_path):
    run("whole", quantize="int8", steps=4)
    run("apart", quantize="int8", steps=2)
    run("apart", quantize="int8", steps=4)
    assert weights(tmp_path / "whole") == weights(tmp_path / "apart")
    with pytest.raises(atomtune.UserError, match=r"holds another run .*quantize 'int8' there and None now"):
        run("apart", steps=6)


def test_half_precision_and_checkpointing_go_with_it(run):
    summary = run(quantize="int8", mixed_precision="bf16", gradient_checkpointing=True, method="lora")
    assert (summary["dtype"], summary["quantize"]) == ("bfloat16", "int8") and summary["loss"] > 0


def test_answers_on_other_prompts_are_those_of_the_quantized_base(run, tmp_path, monkeypatch):
    monkeypatch.setenv("ATOMTUNE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "others.txt").write_text("a cat\n")
    options = {"preserve": True, "preserve_prompts": tmp_path / "others.txt", "preserve_share": 1.0}
    run("whole", **options)
    run("small", quantize="int8", **options)
    assert len(list((tmp_path / "cache" / "preserve").iterdir())) == 2


def test_an_image_says_that_its_base_was_quantized(run, tmp_path, base):
    run()
    words = ["--prompt", "a sks dog", "--steps", "2", "--quantize", "int8", "--out", str(tmp_path / "drawn")]
    main(["generate", str(tmp_path / "run"), *words])
    (image,) = (tmp_path / "drawn").glob("0*.png")
    assert sampling.read_settings(image)["quantize"] == "int8"


@every_base
def test_every_base_trains_in_int8(base, tmp_path):
    """The linear layers of the denoiser and of each text encoder are quantized, and a run has a finite loss."""
    base.pipe().save_pretrained(tmp_path / "base")
    (tmp_path / "images").mkdir()
    picture().save(tmp_path / "images" / "a.png")
    options = {"steps": 2, "resolution": SIZE, "num_atoms": 8, "density": 0.25, "sample_every": 0, "report_to": "none"}
    options |= {"class_name": "dog", "sample_prompts": ("a sks dog",)}
    folder = str(tmp_path / "base")
    summary = atomtune.customize(tmp_path / "images", out=tmp_path / "run", base=folder, quantize="int8", **options)
    assert summary["quantize"] == "int8" and torch.isfinite(torch.tensor(summary["loss"]))
