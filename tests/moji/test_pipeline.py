"""moji is a real PixArt-Σ pipeline, small and quick."""

import time

import pytest
import torch
from diffusers import PixArtSigmaPipeline

from atomtune.moji import load, random_pipeline
from atomtune.moji.pipeline import MAX_TOKENS, WEIGHTS_FOLDER


@pytest.fixture(scope="module")
def pipe():
    pipe = load()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_it_is_the_pipeline_class_of_pixart_sigma(pipe):
    assert isinstance(pipe, PixArtSigmaPipeline)
    assert 6e6 < sum(p.numel() for p in pipe.transformer.parameters()) < 12e6
    assert pipe.transformer.dtype == pipe.vae.dtype == pipe.text_encoder.dtype == torch.float32


def test_all_that_ships_is_under_40_mb():
    assert sum(file.stat().st_size for file in WEIGHTS_FOLDER.parent.rglob("*") if file.is_file()) < 40e6


def test_it_loads_in_five_seconds():
    start = time.perf_counter()
    load()
    assert time.perf_counter() - start < 5


def test_a_prompt_draws_one_picture_of_64_pixels_the_same_each_time(pipe):
    first, second = (
        pipe("a red apple", generator=torch.Generator().manual_seed(1), num_inference_steps=2).images[0] for _ in "ab"
    )
    assert first.size == (64, 64)
    assert first.tobytes() == second.tobytes()


def test_a_long_prompt_is_cut_at_the_short_length(pipe):
    embeddings, mask, *_ = pipe.encode_prompt("a red apple " * 20, do_classifier_free_guidance=False)
    assert embeddings.shape == (1, MAX_TOKENS, 384)
    assert mask.sum() == MAX_TOKENS


def test_random_weights_depend_on_the_seed_and_leave_the_global_state_alone():
    before = torch.random.get_rng_state()
    a, b, c = (random_pipeline(seed).transformer.state_dict()["pos_embed.proj.weight"] for seed in (0, 0, 1))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert torch.equal(before, torch.random.get_rng_state())
