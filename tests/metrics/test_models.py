"""CLIP-T, CLIP-I and DINO against their formulas, on small random models of the real classes: never on real weights."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image

from atomtune.errors import UserError
from atomtune.metrics import ImageReward, drift, load_clip, load_dino, load_image_reward
from tests.metrics.tiny_models import write_clip, write_dino

ROUNDING = 1e-6  # of cosines in float32
rng = np.random.default_rng(0)
PROMPTS = ["a sks teapot", "a cat", "a sks teapot", "a very long prompt of more than twelve tokens", "a dog"]


def images(count: int) -> list[Image.Image]:
    sizes = [(24, 20), (16, 16), (20, 32)]
    return [Image.fromarray(rng.integers(0, 256, (*sizes[n % 3], 3), dtype=np.uint8)) for n in range(count)]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return load_clip(str(write_clip(tmp_path_factory.mktemp("clip"))))


@pytest.fixture(scope="module")
def dino(tmp_path_factory):
    return load_dino(str(write_dino(tmp_path_factory.mktemp("dino"))))


def unit(vectors: torch.Tensor) -> np.ndarray:
    values = vectors.double().numpy()
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def test_clip_t_is_clips_own_logit_over_its_temperature(clip):
    drawn = images(5)
    inputs = clip.processor(text=PROMPTS, images=drawn, padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        logits = clip.model(**inputs).logits_per_image / clip.model.logit_scale.exp()
    np.testing.assert_allclose(clip.alignment(drawn, PROMPTS), logits.diag().numpy(), atol=ROUNDING)


def test_clip_i_is_the_mean_cosine_of_projected_features(clip):
    drawn, subject = images(20), images(3)
    with torch.no_grad():
        a, b = (
            unit(clip.model(**clip.processor(text=["a"], images=group, return_tensors="pt")).image_embeds)
            for group in (drawn, subject)
        )
    np.testing.assert_allclose(clip.fidelity(drawn, subject), [np.mean([x @ y for y in b]) for x in a], atol=ROUNDING)
    np.testing.assert_allclose(clip.features(drawn), a, atol=ROUNDING)


def test_dino_is_the_mean_cosine_of_the_first_token(dino):
    drawn, subject = images(4), images(3)
    with torch.no_grad():
        a, b = (
            unit(dino.model(**dino.processor(images=group, return_tensors="pt")).last_hidden_state[:, 0])
            for group in (drawn, subject)
        )
    np.testing.assert_allclose(dino.fidelity(drawn, subject), (a @ b.T).mean(1), atol=ROUNDING)
    own = dino.fidelity(drawn[:1], drawn[:1])
    assert own == pytest.approx(1, abs=1e-6)


def test_drift_takes_their_features(dino):
    drawn = images(4)
    assert drift(drawn, drawn, dino.features).features == pytest.approx(0, abs=1e-6)


def test_image_reward_asks_its_model_image_by_image():
    """A stand-in: the package pins old versions and its weights cannot be had here."""

    class Reward:
        def score(self, prompt, image):
            return len(prompt) + image.width / 100

    assert ImageReward(Reward()).alignment(images(2), ["a", "ab"]) == pytest.approx([1.2, 2.16])


def test_what_is_missing_is_one_sentence(clip, dino, tmp_path):
    with pytest.raises(UserError, match="one prompt, got 1 for 2 images"):
        clip.alignment(images(2), ["a"])
    with pytest.raises(UserError, match="could not be loaded as a CLIPModel"):
        load_clip(str(tmp_path / "nowhere"))


def test_image_reward_says_why_it_cannot_be_imported(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ImageReward", None)  # as if it was not installed
    with pytest.raises(UserError, match=r"not installed: try pip install 'atomtune\[image-reward\]'"):
        load_image_reward()
    monkeypatch.delitem(sys.modules, "ImageReward")
    (tmp_path / "ImageReward.py").write_text("from transformers.modeling_utils import prune_linear_layer_of_old\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        UserError, match=r"does not go with the others \(cannot import name 'prune_linear_layer_of_old'"
    ):
        load_image_reward()
