"""Latents and conditioning are what the pipeline itself would use."""

import gc
import weakref
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusion3Pipeline, StableDiffusionPipeline
from diffusers.models import modeling_utils
from PIL import Image
from torch.testing import assert_close

from atomtune import moji
from atomtune.bases import DENOISER, IMAGES, TEXT, BaseParts, call_options, load_base
from atomtune.bases.families import FAMILIES
from atomtune.moji.pipeline import MAX_TOKENS
from atomtune.training import encoding


def image() -> Image.Image:
    return Image.linear_gradient("L").resize((64, 64)).convert("RGB")


@pytest.fixture(scope="module")
def pipe(base):
    return load_base(base)


def test_latents_are_the_scaled_gaussian_of_the_autoencoder(pipe):
    latents = encoding.encode_images(pipe, [image(), image()])
    with torch.no_grad():
        gaussian = pipe.vae.encode(torch.stack([encoding.to_tensor(image())] * 2)).latent_dist
    assert_close(latents.mean, gaussian.mean * 0.13025)
    noise = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(0))
    drawn = latents.draw([1], torch.Generator().manual_seed(0))
    assert_close(drawn, 0.13025 * (gaussian.mean + gaussian.std * noise)[1:], atol=1e-6, rtol=1e-5)


def test_an_autoencoder_in_half_precision_encodes_in_float32_without_a_warning(base, monkeypatch):
    monkeypatch.setattr(modeling_utils.logger, "warning", pytest.fail)
    latents: Any = encoding.encode_images(load_base(base, torch.bfloat16), [image()])
    assert latents.mean.dtype == torch.float32 and not torch.equal(latents.mean, latents.mean.bfloat16().float())


def test_an_autoencoder_without_a_gaussian():
    pipe = moji.random_pipeline()
    latents: Any = encoding.encode_images(pipe, [image()])
    with torch.no_grad():
        assert_close(latents.mean, pipe.vae.encode(encoding.to_tensor(image())[None]).latents)
    assert latents.std.count_nonzero() == 0


def test_latents_decode_to_the_image_with_a_shifted_autoencoder(pipe):
    pipe.vae.register_to_config(shift_factor=0.5)
    shifted: Any = encoding.encode_images(pipe, [image()])
    pipe.vae.register_to_config(shift_factor=None)
    plain: Any = encoding.encode_images(pipe, [image()])
    assert_close(shifted.mean, plain.mean - 0.5 * 0.13025)


def test_conditioning_is_what_the_pipeline_passes(pipe):
    conditioning = encoding.encode_caption(pipe, "a sks dog", 64)
    embeds, mask, _, _ = pipe.encode_prompt("a sks dog", do_classifier_free_guidance=False)
    assert conditioning["added_cond_kwargs"] == {"resolution": None, "aspect_ratio": None}
    assert_close(conditioning["encoder_hidden_states"], embeds)
    assert_close(conditioning["encoder_attention_mask"], mask)
    assert embeds.shape == (1, 300, 16)  # the pipeline's own max_sequence_length


def test_moji_gets_its_own_short_prompts():
    conditioning = encoding.encode_caption(moji.random_pipeline(), "a sks dog", 64)
    assert conditioning["encoder_hidden_states"].shape == (1, MAX_TOKENS, 384)


def test_a_batch_of_conditionings(pipe):
    a, b = (encoding.encode_caption(pipe, caption, 64) for caption in ("a dog", "a cat on the beach"))
    batch = encoding.cast(encoding.collate([a, b, a], FAMILIES[0]), torch.bfloat16)
    assert batch["encoder_hidden_states"].shape == (3, 300, 16)
    assert batch["encoder_hidden_states"].dtype == torch.bfloat16
    assert batch["encoder_attention_mask"].dtype == torch.int64
    assert_close(batch["encoder_attention_mask"][1:2], b["encoder_attention_mask"])


def test_a_prompt_is_drawn_the_same_with_the_text_encoder_gone(base):
    parts = BaseParts(base, torch.float32)
    for part in (TEXT, IMAGES, DENOISER):
        parts.load(part)
    pipe: Any = parts.pipe
    options = call_options(pipe) | {"num_inference_steps": 2, "output_type": "latent"}
    before = pipe("a red dog", generator=torch.Generator().manual_seed(0), **options).images
    answer = encoding.encode_prompt(pipe, "a red dog", 64)
    references = [weakref.ref(pipe.text_encoder), weakref.ref(pipe.vae)]
    parts.drop(TEXT)
    parts.drop(IMAGES)
    gc.collect()
    assert [reference() for reference in references] == [None, None]
    with encoding.replayed(pipe, answer):
        after = pipe("a red dog", generator=torch.Generator().manual_seed(0), **options).images
    assert_close(after, before, atol=0, rtol=0)


def test_unets_and_pooled_prompts_work_alike():
    """The pipelines of Stable Diffusion 1 and 3 tell their denoisers different things."""
    from tests.training.tiny_others import stable_diffusion, stable_diffusion_3

    for pipe, expected in (
        (stable_diffusion(), {"encoder_hidden_states"}),
        (stable_diffusion_3(), {"encoder_hidden_states", "pooled_projections"}),
    ):
        conditioning = encoding.encode_caption(pipe, "a sks dog", 64)
        assert {name for name, value in conditioning.items() if isinstance(value, torch.Tensor)} == expected
        assert isinstance(pipe, StableDiffusionPipeline | StableDiffusion3Pipeline)
        assert isinstance(pipe.vae, AutoencoderKL)
