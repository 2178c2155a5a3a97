"""A whole life of an adapter on every family: customize, killed and resumed to the bit, drawn with, watched, pruned,
merged, inspected."""

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import atomtune
from atomtune import bases, load_adapter, trace
from atomtune.analysis.examples import training_examples
from atomtune.analysis.heatmaps import overlay
from atomtune.analysis.influence import influence
from atomtune.cli import main
from tests.bases.families import SIZE
from tests.bases.test_families import every_base, picture
from tests.training import run_and_die
from tests.training.quick import state

OPTIONS: dict[str, Any] = {
    "class_name": "dog",
    "resolution": SIZE,
    "steps": 3,
    "checkpoint_every": 2,
    "batch_size": 2,
    "num_atoms": 8,
    "density": 0.25,
    "learning_rate": 1e-2,
    "caption_dropout": 0.3,
    "sample_every": 0,
    "sample_prompts": ("a sks dog",),
}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Two images, with captions of two lengths, and a wide one."""
    folder = tmp_path / "images"
    folder.mkdir()
    wide = picture().resize(
        (4 * SIZE, SIZE)
    )  # its bucket is 128x32, which Sana takes too: its sides are multiples of 32
    for name, image in (("a", picture()), ("b", picture().rotate(90)), ("wide", wide)):
        image.save(folder / f"{name}.png")
        caption = "a sks dog" if name == "a" else "a photo of a sks dog in the snow on the beach"
        (folder / f"{name}.txt").write_text(caption)
    return folder


@pytest.mark.slow
@every_base
def test_a_life(base, images, tmp_path, capsys):
    """In aspect buckets: some steps are on square images, others on a wide one."""
    pipe = base.pipe()
    pipe.save_pretrained(tmp_path / "base")
    options = OPTIONS | {"base": str(tmp_path / "base"), "images": str(images), "aspect_ratio_buckets": True}
    whole, run = tmp_path / "whole" / "run", tmp_path / "killed" / "run"
    atomtune.customize(**options, out=str(whole))
    tensors = load_file(whole / "adapter" / "adapter_model.safetensors")
    assert all(tensor.abs().max() > 0 for name, tensor in tensors.items() if "decoder" in name)
    assert run_and_die.customize("step:3", **options, out=str(run)) == -signal.SIGKILL
    assert not (run / "adapter").exists() and list((run / "checkpoints").iterdir())
    atomtune.customize(**options, out=str(run))
    assert state(run) == state(whole)

    pipe = bases.load_base(tmp_path / "base")
    load_adapter(pipe, run)
    with trace(pipe, codes=True) as seen:
        (drawing,) = atomtune.generate(pipe, "a sks dog", steps=2, resolution=SIZE)
    layer: Any = next(layer for layer in seen.layers if layer.sees_image)
    heat = layer.maps(magnitude=True)[0, :, 0]
    assert heat.shape == (layer.grid[0] * layer.grid[1],)
    assert overlay(drawing.image, heat).size == (SIZE, SIZE)
    examples = training_examples(pipe, images, "a sks dog", draws=1, resolution=SIZE)
    assert influence(pipe, examples.outputs, layer.address).shape[2:] == examples.noised.noisy.shape[2:]

    few = ["--steps", 2, "--resolution", SIZE]
    command("generate", run, "--prompt", "a sks dog", *few, "--out", tmp_path / "drawn")
    assert list((tmp_path / "drawn").glob("*.png"))
    command("prune", run, "--keep", 3, "--out", tmp_path / "small")
    assert "Kept 3 of" in capsys.readouterr().out
    command("merge", run, tmp_path / "small", "--out", tmp_path / "merged")
    command("generate", tmp_path / "merged", "--prompt", "a sks dog", *few, "--out", tmp_path / "both")
    command("inspect", run, *few, "--naming-prompts", 4, "--top", 2, "--out", tmp_path / "report.html")
    assert "L0[" in (tmp_path / "report.html").read_text()


def command(*words: Any) -> None:
    main([str(word) for word in words])


@pytest.mark.slow
@every_base
def test_everything_else_that_a_run_may_train_on(base, images, tmp_path, monkeypatch):
    """Class images, other prompts with a floor, LoRA, checkpointing, half precision."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    base.pipe().save_pretrained(tmp_path / "base")
    (tmp_path / "others.txt").write_text("a cat\na photo of a red cat on the beach\n")
    options = OPTIONS | {"base": str(tmp_path / "base"), "images": str(images), "steps": 2}
    preserve = {"preserve": True, "preserve_prompts": str(tmp_path / "others.txt"), "preserve_share": 1.0, "floor": 0.5}
    prior = {"prior_preservation": True, "num_class_images": 1}
    summary = atomtune.customize(**options | preserve | prior, out=str(tmp_path / "kept"))
    assert summary["steps"] == 2 and torch.isfinite(torch.tensor(summary["loss"]))
    half = {"method": "lora", "rank": 2, "mixed_precision": "bf16", "gradient_checkpointing": True}
    summary = atomtune.customize(**options | prior | half, out=str(tmp_path / "lora"))
    assert summary["dtype"] == "bfloat16" and torch.isfinite(torch.tensor(summary["loss"]))
