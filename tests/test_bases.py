"""Opening bases, and what they say of themselves."""

import shutil
from unittest.mock import Mock

import accelerate
import huggingface_hub.constants
import pytest
import torch
from diffusers import DiffusionPipeline

from atomtune import UserError, bases
from atomtune.adapters import AtomConfig
from atomtune.bases import (
    call_options,
    denoiser,
    fingerprint,
    load_base,
    native_resolution,
    resolution_for,
)
from atomtune.sizes import Size
from tests.tiny_pixart import adapted, draw, tiny_pixart


def test_a_base_that_does_not_say_its_size_is_left_to_its_own():
    from tests.training.tiny_others import flux, z_image

    assert native_resolution(flux()) == Size(1024, 1024)  # the pipeline says it where the denoiser does not
    pipe = z_image()
    with pytest.raises(
        UserError, match="ZImagePipeline does not define the size of its images: give a resolution in pixels"
    ):
        native_resolution(pipe)
    assert "height" not in call_options(pipe)
    assert call_options(pipe, 64)["height"] == 64


def test_films_are_refused(base):
    class Films(type(load_base(base))):
        def __call__(self, prompt: str, num_frames: int = 16): ...

    with pytest.raises(UserError, match="Films draws videos, not images"):
        call_options(Films(**load_base(base).components))


def test_a_base_from_a_folder(base):
    pipe = load_base(base)
    assert native_resolution(pipe) == Size(64, 64)
    assert call_options(pipe)["use_resolution_binning"] is False
    assert draw(pipe).shape == (1, 3, 64, 64)
    assert load_base(base, torch.bfloat16).transformer.dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["nowhere", "/nowhere/at/all", "a b"])
def test_an_unknown_base_is_refused(name):
    with pytest.raises(UserError, match=f"there is no base model '{name}': expected 'moji', a folder that holds"):
        load_base(name)


def test_a_hub_name_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="the base model 'nobody/nothing' could not be opened"):
        load_base("nobody/nothing")


def test_a_broken_base_is_refused(base, tmp_path):
    shutil.copytree(base, tmp_path / "broken")
    (tmp_path / "broken" / "transformer" / "config.json").write_text("{")
    with pytest.raises(UserError, match="broken' could not be opened"):
        load_base(tmp_path / "broken")


def test_the_fingerprint_does_not_see_adapters(base):
    assert fingerprint(load_base(base).transformer) == fingerprint(adapted(base).transformer)


def test_a_pipeline_without_a_denoiser_is_refused():
    pipe = tiny_pixart()
    pipe.transformer = None
    with pytest.raises(UserError, match="neither a transformer nor a unet"):
        denoiser(pipe)


def test_a_resolution_is_a_multiple_of_what_a_token_covers():
    pipe = tiny_pixart()
    each = pipe.vae_scale_factor * pipe.transformer.config.patch_size
    assert resolution_for(pipe, 3 * each) == Size(3 * each, 3 * each) and resolution_for(
        pipe, None
    ) == native_resolution(pipe)
    with pytest.raises(
        UserError, match=rf"must be a multiple of {each} with this base, got {3 * each + 1}: try {3 * each}\."
    ):
        resolution_for(pipe, 3 * each + 1)
    assert resolution_for(pipe, f"{4 * each}x{3 * each}").shape == (3 * each, 4 * each)
    with pytest.raises(UserError, match=rf"a multiple of {each} with this base, got 100x64: try 96x64\."):
        resolution_for(pipe, "100x64")
    pipe.image_processor.register_to_config(vae_scale_factor=4 * each)  # as of a base that packs its latents
    with pytest.raises(UserError, match=f"must be a multiple of {4 * each}"):
        resolution_for(pipe, 3 * each)


def test_half_precision_warns_of_nothing(capfd):
    """diffusers warns of a cast by its own `to`, also where no module must stay in float32."""
    assert load_base("moji", "bfloat16").transformer.dtype == torch.bfloat16
    assert "should be kept in float32" not in capfd.readouterr().err


@pytest.mark.parametrize(
    "kind, called",
    [
        ("model", ("enable_model_cpu_offload", {"device": torch.device("cuda")})),
        ("sequential", ("enable_sequential_cpu_offload", {"device": torch.device("cuda")})),
        ("group", ("enable_group_offload", {"offload_type": "leaf_level", "use_stream": True})),
    ],
)
def test_offloading_is_that_of_diffusers(kind, called):
    """On a card that is not there, so the calls are only written down."""
    pipe = Mock(model_cpu_offload_seq="text_encoder->transformer->vae")
    bases.offload(pipe, torch.device("cuda"), kind)
    name, _, options = pipe.mock_calls[-1]
    assert (name, options) == called
    assert callable(getattr(DiffusionPipeline, name))


@pytest.mark.parametrize("form", [{}, {"mix_first": False}, {"target_modules": ["attn1.to_v"]}], ids=str)
@pytest.mark.parametrize("kind", ["sequential", "group"])
def test_an_adapter_whose_layers_come_one_by_one_draws_the_same(kind, form, base):
    """The hooks that diffusers sets, with the CPU as the device to which they bring the layers. In
    sequential offloading a layer's weights are on "meta" between two calls of it, so a forward that reached for those
    of another would fail."""
    drawn = []
    for offloaded in (False, True):
        pipe = adapted(base, AtomConfig(**{"target_modules": ["attn1"], "num_atoms": 8} | form))
        if offloaded and kind == "sequential":
            accelerate.cpu_offload(denoiser(pipe), torch.device("cpu"), offload_buffers=True)
            assert all(parameter.is_meta for parameter in denoiser(pipe).parameters())
        elif offloaded:
            pipe.enable_group_offload(torch.device("cpu"), offload_type="leaf_level")
        drawn.append(draw(pipe))
    assert torch.equal(*drawn)


def test_on_a_cpu_nothing_is_offloaded_and_asking_for_it_is_refused():
    pipe = Mock()  # which would write down a call
    bases.offload(pipe, torch.device("cpu"), "model")
    assert not pipe.mock_calls
    bases.refuse_offload(None, torch.device("cpu"))
    bases.refuse_offload("group", torch.device("cuda"))
    with pytest.raises(UserError, match=r"offload moves the parts of a base to .* device is cpu: leave"):
        bases.refuse_offload("model", torch.device("cpu"))
    with pytest.raises(UserError, match="offload must be one of model, sequential, group, got 'disk'"):
        bases.refuse_offload("disk", torch.device("cuda"))
