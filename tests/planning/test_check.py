"""The sentence before a run: whether it fits, told before anything is downloaded."""

import logging
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image

import atomtune
from atomtune import bases
from atomtune.bases import load_base
from atomtune.errors import UserError
from atomtune.planning import check
from atomtune.planning.estimates import encode_image
from atomtune.planning.memory import GIB, Need, side_multiple
from atomtune.planning.parts import find_parts
from atomtune.sizes import Size
from atomtune.training.config import CustomizeConfig
from atomtune.training.recipes import configure


def config(base: str, **options: Any) -> CustomizeConfig:
    return configure(images="images", class_name="dog", out="run", base=base, num_atoms=8, resolution=64, **options)


def test_the_options_that_fit_are_named(base, monkeypatch):
    assert check.warning(config(base), [], torch.float32, 80 * GIB) is None

    def card(need):  # the tiny base is far below any card
        return GIB if need.way.gradient_checkpointing else 30 * GIB

    monkeypatch.setattr(Need, "card", property(card))
    said = check.warning(config(base), [], torch.float32, 24 * GIB)
    assert said == (
        "this run needs about 30.0 GB on the card, and 24.0 GB are free: with --gradient-checkpointing it needs 1.0 GB."
    )
    monkeypatch.setattr(Need, "card", property(lambda need: GIB if need.way.offload else 30 * GIB))
    assert check.warning(config(base, offload="group"), [], torch.float32, 24 * GIB) is None


@pytest.mark.parametrize("shape, planned", [((64, 64), 64), ((400, 200), "96x48")])
def test_with_buckets_the_largest_in_use_counts(shape, planned, base, monkeypatch):
    found = []

    def needs(sizes, *_):
        found.append(sizes.resolution)
        raise UserError("enough")

    monkeypatch.setattr(check, "needs", needs)
    check.warning(config(base, aspect_ratio_buckets=True), [shape, (64, 64)], torch.float32, GIB)
    assert found == [Size.of(planned)]


def test_the_side_of_a_token_is_that_of_the_pipeline(base):
    """So the buckets are those of the run."""
    parts, size = find_parts(base), Size(64, 64)
    assert side_multiple(parts, size, encode_image(parts.autoencoder, size)[1]) == bases.side_multiple(load_base(base))


def test_it_is_said_before_anything_is_downloaded(base, tmp_path, monkeypatch, caplog):
    """The hub is a stand-in: configurations come from a folder, and the download of weights ends the run."""

    class Downloads(Exception):
        pass

    def download(*_, **__):
        raise Downloads

    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, allow_patterns: base)
    monkeypatch.setattr(DiffusionPipeline, "download", download)
    monkeypatch.setattr("atomtune.training.run.free_memory", lambda device: 2**20)
    images = tmp_path / "images"
    images.mkdir()
    Image.new("RGB", (64, 64), "red").save(images / "0.png")
    options: dict[str, Any] = {
        "class_name": "dog",
        "out": tmp_path / "run",
        "steps": 1,
        "num_atoms": 8,
        "device": "cpu",
    }
    with caplog.at_level(logging.INFO, logger="atomtune"), pytest.raises(Downloads):
        atomtune.customize(images, base="someone/something", resolution=64, report_to="none", **options)
    told = [record.getMessage() for record in caplog.records if "on the card" in record.getMessage()]
    assert len(told) == 1 and "no option makes it fit" in told[0]


def test_where_the_hub_does_not_answer_the_run_goes_on(tmp_path, monkeypatch, caplog):
    def offline(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with caplog.at_level(logging.INFO, logger="atomtune"):
        assert check.warning(config("someone/something"), [], torch.float32, GIB) is None
    assert "the memory of this run is not known" in caplog.text and Path("run").exists() is False
