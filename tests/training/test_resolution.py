"""A run on images that are not square: its samples, its folder, and the commands that read it."""

import functools
import json

import numpy as np
import pytest
import torch
import yaml
from diffusers import UNet2DConditionModel
from PIL import Image

from atomtune import cli, sampling
from atomtune.sizes import Size
from atomtune.training import encoding
from tests.tiny_pixart import tiny_pixart
from tests.training.quick import state, weights
from tests.training.tiny_others import pixart_alpha, stable_diffusion_xl


def test_a_run_that_is_not_square_continues_and_draws(run, base, images, tmp_path):
    options = {"resolution": "64x32", "steps": 2, "checkpoint_every": 1}
    summary = run("run", **options)
    assert summary["resolution"] == "64x32" and "--resolution 64x32" in summary["next_command"]
    out = tmp_path / "run"
    assert yaml.safe_load((out / "config.yaml").read_text())["resolution"] == "64x32"
    (sample, *_) = sorted((out / "samples").iterdir())
    with Image.open(sample) as image:
        assert image.size == (64, 32)
    assert sampling.read_settings(sample)["resolution"] == "64x32"
    assert "| resolution | 64x32 |" in (out / "adapter" / "README.md").read_text()
    run("run", **options | {"steps": 4})
    run("whole", **options | {"steps": 4})
    assert weights(out) == weights(tmp_path / "whole")

    drawn = tmp_path / "drawn"
    words = ["--prompt", "a sks dog", "--steps", "2", "--resolution", "32x64", "--out", str(drawn)]
    cli.main(["generate", str(out), *words])
    (file,) = drawn.glob("000-*.png")
    with Image.open(file) as image:
        assert image.size == (32, 64)
    compared = tmp_path / "compared"
    words = ["--prompt", "a sks dog", "--metrics", "drift", "--num", "1", "--steps", "2"]
    cli.main(["compare", str(out), *words, "--resolution", "64x32",
              "--out", str(compared)])  # fmt: skip
    assert json.loads((compared / "scores.json").read_text())["resolution"] == "64x32"


def test_a_size_that_the_base_cannot_draw_is_refused_in_one_sentence(images, base, tmp_path, capsys):
    command = ["customize", str(images), "--class-name", "dog", "--base", base, "--out", str(tmp_path / "run")]
    for written, sentence in (("64x40", "must be a multiple of 16 with this base, got 64x40: try 64x32"),
                              ("100000x64", "must be at most 8192 pixels on a side, got 100000x64"),
                              ("wide", "resolution must be a number of pixels")):  # fmt: skip
        with pytest.raises(SystemExit):
            cli.main([*command, "--resolution", written])
        error = capsys.readouterr().err
        assert sentence in error and len(error.strip().splitlines()) == 1
    assert not (tmp_path / "run" / "config.yaml").exists()


@pytest.fixture
def shapes(tmp_path):
    """Images of three shapes, two of them square."""
    folder = tmp_path / "shapes"
    folder.mkdir()
    random = np.random.default_rng(0)
    for number, (width, height) in enumerate([(64, 64), (120, 60), (64, 64), (60, 96)]):
        pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def test_a_run_with_buckets_continues_to_the_same_bits(run, shapes, tmp_path):
    options = {"images": shapes, "aspect_ratio_buckets": True, "checkpoint_every": 2, "caption_dropout": 0.5}
    options |= {"prior_preservation": True, "num_class_images": 1, "sample_every": 2}
    run("stopped", **options | {"steps": 2})
    run("stopped", **options | {"steps": 6})
    summary = run("whole", **options | {"steps": 6})
    assert state(tmp_path / "stopped") == state(tmp_path / "whole")
    assert summary["resolution"] == 64 and summary["held_loss"] > 0


def test_square_images_are_trained_on_as_without_buckets(run, shapes, tmp_path):
    for name in ("1.png", "3.png"):
        (shapes / name).unlink()
    run("with", images=shapes, aspect_ratio_buckets=True)
    run("without", images=shapes)
    assert weights(tmp_path / "with") == weights(tmp_path / "without")


def test_sdxl_is_told_the_original_size_and_the_crop():
    pipe = stable_diffusion_xl()
    size = Size(96, 48)
    told = encoding.told_sizes(pipe, (960, 640), size)
    assert told == {"original_size": (640, 960), "crops_coords_top_left": (8, 0), "target_size": (48, 96)}
    conditioning = encoding.encode_caption(pipe, "a sks dog", size, **told)
    assert conditioning["added_cond_kwargs"]["time_ids"].tolist() == [[640, 960, 8, 0, 48, 96]]
    assert encoding.told_sizes(tiny_pixart(), (960, 640), size) == {}


@pytest.mark.parametrize("buckets", [False, True], ids=["one size", "buckets"])
def test_a_run_on_sdxl_tells_it_the_size_and_the_crop_of_each_image(run, shapes, tmp_path, monkeypatch, buckets):
    """What the UNet gets in training; class images are told as they are drawn, and cropped from that size."""
    stable_diffusion_xl().save_pretrained(tmp_path / "sdxl")
    seen, forward = set(), UNet2DConditionModel.forward

    @functools.wraps(forward)
    def watched(self, *args, added_cond_kwargs, **kwargs):
        if torch.is_grad_enabled():
            seen.update(tuple(map(int, row)) for row in added_cond_kwargs["time_ids"].tolist())
        return forward(self, *args, added_cond_kwargs=added_cond_kwargs, **kwargs)

    monkeypatch.setattr(UNet2DConditionModel, "forward", watched)
    options = {"base": str(tmp_path / "sdxl"), "images": shapes, "resolution": 64, "aspect_ratio_buckets": buckets}
    options |= {"prior_preservation": True, "num_class_images": 1, "caption_dropout": 0.5}
    run(**options)
    square = (64, 64, 0, 0, 64, 64)
    if buckets:
        wide, high = (
            {(60, 120, 0, 4, 48, 88), (64, 64, 20, 0, 48, 88)},
            {(96, 60, 0, 4, 88, 48), (64, 64, 0, 20, 88, 48)},
        )
        assert seen == {square, *wide, *high}
    else:
        assert seen == {square, (60, 120, 0, 32, 64, 64), (96, 60, 19, 0, 64, 64)}


def test_pixart_alpha_is_told_the_size_and_the_shape_of_its_bucket():
    pipe = pixart_alpha()
    pipe.transformer.register_to_config(sample_size=128)  # the one size at which its pipeline tells them
    told = encoding.encode_caption(pipe, "a sks dog", "96x48")["added_cond_kwargs"]
    assert told["resolution"].tolist() == [[48, 96]] and told["aspect_ratio"].tolist() == [[0.5]]
