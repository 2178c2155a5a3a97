"""Opening bases, and adapters on the base they belong to."""

import json
import shutil

import huggingface_hub.constants
import pytest
import torch
from diffusers import SD3Transformer2DModel
from peft import LoraConfig, get_peft_model
from torch.testing import assert_close

from atomtune import AtomConfig, UserError
from atomtune.pipelines import (
    adapter_info,
    call_options,
    denoiser,
    fingerprint,
    load_adapter,
    load_autoencoder,
    load_base,
    native_resolution,
    save_adapter,
    set_denoiser,
)
from tests.tiny_pixart import save_tiny_pixart, tiny_pixart


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> str:
    return str(save_tiny_pixart(tmp_path_factory.mktemp("base")))


@pytest.fixture(scope="module")
def other_base(tmp_path_factory) -> str:
    return str(save_tiny_pixart(tmp_path_factory.mktemp("other"), seed=1))


def adapted(base: str, config=None):
    """The base with an adapter that does something."""
    pipe = load_base(base)
    model = get_peft_model(denoiser(pipe), config or AtomConfig(target_modules=["attn1"], num_atoms=8))
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.5, generator=torch.Generator().manual_seed(len(name)))
    set_denoiser(pipe, model)
    return pipe


def draw(pipe) -> torch.Tensor:
    options = call_options(pipe) | {"num_inference_steps": 2, "output_type": "pt"}
    return pipe("a sks dog", generator=torch.Generator().manual_seed(0), **options).images


def test_a_base_from_a_folder(base):
    pipe = load_base(base)
    assert native_resolution(pipe) == 64
    assert call_options(pipe)["use_resolution_binning"] is False
    assert draw(pipe).shape == (1, 3, 64, 64)
    assert load_base(base, torch.bfloat16).transformer.dtype == torch.bfloat16
    vae = load_autoencoder(base, type(pipe.vae))
    assert_close(vae.state_dict(), pipe.vae.state_dict(), atol=0, rtol=0)


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


@pytest.mark.parametrize("config", [None, LoraConfig(r=2, target_modules=["to_q"])], ids=["atoms", "lora"])
@pytest.mark.parametrize("name", ["default", "dog"])
def test_an_adapter_draws_the_same_after_saving(base, tmp_path, config, name):
    pipe = adapted(base, config)
    save_adapter(pipe.transformer, tmp_path / "run" / "adapter", base=base, token="sks", class_name="dog", card="# dog")
    again = load_base(base)
    before = draw(again)
    model = load_adapter(again, tmp_path / "run", name)
    assert name in model.peft_config
    assert_close(draw(again), draw(pipe), atol=0, rtol=0)
    assert not torch.equal(draw(again), before)
    info = adapter_info(tmp_path / "run")
    assert (info["base_model_name_or_path"], info["auto_mapping"]["token"]) == (base, "sks")
    assert (tmp_path / "run" / "adapter" / "README.md").read_text() == "# dog"


def test_a_second_adapter_is_saved_in_a_folder_of_its_own(base, tmp_path):
    pipe = adapted(base)
    save_adapter(pipe.transformer, tmp_path / "one", base=base)
    load_adapter(pipe, tmp_path / "one", "second")
    save_adapter(pipe.transformer, tmp_path / "two", base=base, adapter_name="second")
    names = {path.name for path in (tmp_path / "one").iterdir()}
    assert {path.name for path in (tmp_path / "two").iterdir()} == names
    weights = "adapter_model.safetensors"
    assert (tmp_path / "one" / weights).read_bytes() == (tmp_path / "two" / weights).read_bytes()


def test_an_adapter_of_another_base_is_refused_naming_both(base, other_base, tmp_path):
    save_adapter(adapted(base).transformer, tmp_path / "adapter", base=base)
    with pytest.raises(UserError) as error:
        load_adapter(load_base(other_base), tmp_path / "adapter")
    assert base in str(error.value)
    assert other_base in str(error.value)


def test_an_adapter_without_our_fingerprint_is_refused_when_it_does_not_fit(base, tmp_path):
    wide = SD3Transformer2DModel(num_layers=1, attention_head_dim=8, num_attention_heads=2, caption_projection_dim=16)
    get_peft_model(wide, LoraConfig(r=2, target_modules=["to_q"])).save_pretrained(
        str(tmp_path / "lora"), save_embedding_layers=False
    )
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "some/other"
    (tmp_path / "lora" / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="was trained on the base 'some/other', not on"):
        load_adapter(load_base(base), tmp_path / "lora")


def test_a_base_is_recognised_elsewhere_and_in_half_precision(base, tmp_path):
    save_adapter(adapted(base).transformer, tmp_path / "adapter", base=base)
    shutil.copytree(base, tmp_path / "moved")
    load_adapter(load_base(tmp_path / "moved", torch.bfloat16), tmp_path / "adapter")


def test_the_fingerprint_does_not_see_adapters(base):
    assert fingerprint(load_base(base).transformer) == fingerprint(adapted(base).transformer)


def test_no_adapter_and_a_broken_one(base, tmp_path):
    with pytest.raises(UserError, match="there is no adapter in"):
        load_adapter(load_base(base), tmp_path)
    (tmp_path / "adapter_config.json").write_text("{")
    with pytest.raises(UserError, match="is not valid JSON"):
        load_adapter(load_base(base), tmp_path)


def test_weights_that_cannot_be_read_are_refused(base, tmp_path):
    save_adapter(adapted(base).transformer, tmp_path / "adapter", base=base)
    weights = tmp_path / "adapter" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(UserError, match="cannot be read"):
        load_adapter(load_base(base), tmp_path / "adapter")


def test_a_pipeline_without_a_denoiser_is_refused():
    pipe = tiny_pixart()
    pipe.transformer = None
    with pytest.raises(UserError, match="neither a transformer nor a unet"):
        denoiser(pipe)
