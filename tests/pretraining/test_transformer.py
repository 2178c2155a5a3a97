"""What the pretraining loop feeds the transformer."""

import pytest
import torch

from atomtune.moji.pipeline import MAX_TOKENS, random_pipeline
from pretraining import state
from pretraining.batches import Captions


def test_captions_are_the_pipelines_own_embeddings():
    prompts = ["a red apple", "a noto drawing of a dog on a blue background", ""]
    embeddings, mask = Captions()(prompts)
    pipe = random_pipeline()
    expected, expected_mask, *_ = pipe.encode_prompt(prompts, do_classifier_free_guidance=False)
    assert embeddings.shape == (3, MAX_TOKENS, 384)
    assert torch.equal(mask, expected_mask.float())
    difference = (embeddings - expected) * mask[..., None]
    assert difference.norm() < 0.02 * (expected * mask[..., None]).norm()  # computed in bfloat16, kept in float16


def test_a_kill_while_saving_leaves_the_last_state(tmp_path, monkeypatch):
    path = tmp_path / "state.pt"
    assert state.load(path) is None
    state.save(path, images=1, weights=torch.ones(2))

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(type(path), "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        state.save(path, images=2, weights=torch.zeros(2))
    last = state.load(path)
    assert last is not None
    assert last["images"] == 1
