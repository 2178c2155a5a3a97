"""A run on images that are not square: its samples, its folder, and the commands that read it."""

import json

import pytest
import yaml
from PIL import Image

from atomtune import cli, sampling
from tests.training.quick import weights


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
                              ("wide", "resolution must be a number of pixels")):  # fmt: skip
        with pytest.raises(SystemExit):
            cli.main([*command, "--resolution", written])
        error = capsys.readouterr().err
        assert sentence in error and len(error.strip().splitlines()) == 1
    assert not (tmp_path / "run" / "config.yaml").exists()
