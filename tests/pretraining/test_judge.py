"""How the judge's training data are made."""

import random

import pytest
import torch
from PIL import Image

pytest.importorskip("resvg_py", reason="rendering drawings needs resvg-py (the extra `dev`)")

from atomtune.moji.scenes import STYLES, Scene, caption, compose
from pretraining.judge import PALETTE, attributes_said, compose_all, kept_out_scene, pictures_of_nothing, turn_hue


def test_what_a_caption_says():
    scene = Scene("small-airplane", "noto", "blue", "large", "left")
    assert caption(scene) == "a noto drawing of a large small airplane on the left on a blue background"
    assert attributes_said(caption(scene), scene) == [1, 4, 2, 1]
    assert attributes_said("a small airplane", scene) == [-1, -1, -1, -1]


def test_composing_in_a_batch_agrees_with_compose():
    """Moved by whole pixels; a gray square looks the same mirrored, and nearly so turned by a few degrees."""
    drawing = Image.new("RGBA", (44, 44), (128, 128, 128, 255))
    expected = torch.tensor(list(compose(drawing, Scene("square", "noto", "blue", place="left")).tobytes()))
    expected = expected.view(64, 64, 3).permute(2, 0, 1) / 127.5 - 1
    canvas = torch.zeros(1, 4, 64, 64)
    canvas[:, :, 10:54, 10:54] = torch.tensor([128 / 255, 128 / 255, 128 / 255, 1])[:, None, None]
    shift, ones = torch.tensor([[-8.0, 0.0]]), torch.ones(1)
    picture = compose_all(canvas, PALETTE[4:5], shift, ones, torch.Generator().manual_seed(0))[0]
    assert (picture - expected).abs().mean() < 0.05


def test_a_turned_hue_keeps_the_shape_and_grays():
    canvas = torch.rand(8, 4, 64, 64)
    canvas[:, :3] = canvas[:, 3:] * 0.5
    turned = turn_hue(canvas, torch.Generator().manual_seed(0))
    torch.testing.assert_close(turned, canvas)


def test_pictures_of_nothing():
    pictures = torch.rand(8, 3, 64, 64) * 2 - 1
    for seed in range(4):
        nothing = pictures_of_nothing(pictures, torch.Generator().manual_seed(seed))
        assert nothing.shape == (4, 3, 64, 64)
        assert nothing.abs().max() <= 1


def test_scenes_it_is_measured_on_were_kept_out():
    rng = random.Random(0)
    assert all(kept_out_scene("cat", list(STYLES), rng).kept_out for _ in range(20))
