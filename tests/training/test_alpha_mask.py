"""The alpha channel as a loss mask, in whole runs: it goes where the image goes, and nothing changes without one."""

import logging
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from atomtune.errors import UserError
from atomtune.training import encoding
from tests.training.quick import state, weights

OTHERS = {"preserve": True, "preserve_share": 0.5, "prior_preservation": True, "num_class_images": 2}


def with_alpha(folder: Path, number: int, alpha: Image.Image) -> None:
    """Give the image of this number an alpha channel."""
    with Image.open(folder / f"{number}.png") as image:
        image.putalpha(alpha)
    image.save(folder / f"{number}.png")


def left_half(size: tuple[int, int] = (64, 48)) -> Image.Image:
    alpha = Image.new("L", size)
    alpha.paste(255, (0, 0, size[0] // 2, size[1]))
    return alpha


@pytest.fixture
def prompts(tmp_path) -> Path:
    (tmp_path / "prompts.txt").write_text("a cat\n")
    return tmp_path / "prompts.txt"


def test_images_that_are_opaque_train_as_without_a_mask(run, images, tmp_path, prompts):
    options = {**OTHERS, "preserve_prompts": prompts, "random_flip": True}
    run("without", **options)
    with_alpha(images, 1, Image.new("L", (64, 48), 255))
    run("opaque", alpha_mask=True, **options)
    assert weights(tmp_path / "opaque") == weights(tmp_path / "without")


def test_what_is_transparent_is_not_learnt(run, images, tmp_path, monkeypatch):
    """Where nothing counts, the loss may change and the adapter does not: errors there have no gradient."""
    for number in range(3):
        with_alpha(images, number, left_half())
    run("masked", alpha_mask=True, steps=2)
    predict = encoding.predict

    def spoilt(model, examples, *args):
        output, hidden = predict(model, examples, *args), examples.mask == 0
        return output + 100 * torch.cat([hidden, hidden], dim=1)  # the second half is a variance that is not trained

    monkeypatch.setattr(encoding, "predict", spoilt)
    run("spoilt", alpha_mask=True, steps=2)
    assert weights(tmp_path / "spoilt") == weights(tmp_path / "masked")


def test_a_stopped_run_goes_on_with_its_masks_beside_other_examples(run, images, tmp_path, prompts):
    with_alpha(images, 0, left_half())
    options = {**OTHERS, "preserve_prompts": prompts, "alpha_mask": True, "sample_every": 2}
    run("whole", **options)
    run("stopped", steps=2, **options)
    run("stopped", **options)
    assert state(tmp_path / "stopped") == state(tmp_path / "whole")
    run("ignored", **options | {"alpha_mask": False})
    assert weights(tmp_path / "ignored") != weights(tmp_path / "whole")
    with_alpha(images, 0, Image.new("L", (64, 48), 9))
    with pytest.raises(UserError, match="other images, captions or repeats there"):
        run("whole", **options)


def test_the_mask_is_cropped_and_flipped_with_its_image(run, images, tmp_path, monkeypatch):
    """Two buckets; an image of which the left half is visible, and its mirror image."""
    found, encode = [], encoding.encode_images
    monkeypatch.setattr(encoding, "encode_images", lambda *args: found.append(encode(*args)) or found[-1])
    Image.new("RGB", (128, 64)).save(images / "0.png")
    with_alpha(images, 0, left_half((128, 64)))
    run(alpha_mask=True, aspect_ratio_buckets=True, random_flip=True, steps=1)
    masks = found[0].mask
    wide, mirrored = masks[0], masks[3]
    assert [tuple(mask.shape) for mask in masks] == [tuple(mean.shape) for mean in found[0].mean]
    assert wide.shape[2] == 2 * wide.shape[1]
    assert bool((wide[..., : wide.shape[2] // 2] == 2).all() and (wide[..., wide.shape[2] // 2 :] == 0).all())
    assert_close(mirrored, wide.flip(-1))
    assert all(bool((masks[number] == 1).all()) for number in (1, 2, 4, 5))


def test_a_run_without_any_alpha_says_so(run, caplog):
    with caplog.at_level(logging.WARNING):
        run(alpha_mask=True, steps=1)
    assert "no image has an alpha channel, so alpha_mask changes nothing" in caplog.text
