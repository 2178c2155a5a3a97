"""What a folder says of a base before weights are read: one that is none, or not all there, is one sentence."""

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import atomtune
from atomtune.bases import DENOISER, BaseParts, denoiser, load_base
from atomtune.planning.parts import find_parts
from tests.tiny_pixart import save_tiny_pixart
from tests.training import tiny_others


@pytest.mark.parametrize("open_base", [load_base, lambda name: BaseParts(name, torch.float32)], ids=["whole", "parts"])
@pytest.mark.parametrize(
    ("removed", "sentence"),
    [
        ("text_encoder/config.json", "text_encoder has no config.json"),
        ("tokenizer/tokenizer.json", "tokenizer has no vocabulary, such as tokenizer.json"),
    ],
)
def test_what_transformers_would_invent_is_missed(open_base, removed, sentence, tmp_path):
    save_tiny_pixart(tmp_path)
    (tmp_path / removed).unlink()
    with pytest.raises(atomtune.UserError, match=sentence):
        open_base(str(tmp_path))


def test_weights_of_other_shapes_are_one_sentence(tmp_path):
    save_tiny_pixart(tmp_path)
    file = tmp_path / "text_encoder" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"d_model": 32}))
    with pytest.raises(atomtune.UserError, match="could not be opened"):
        load_base(str(tmp_path))


class Left:
    """In place of an entry that is not there."""


def changed(**entries: Any) -> Callable[[dict[str, Any]], Any]:
    """model_index.json with other entries; without those that are `Left`."""
    return lambda index: {key: value for key, value in (index | entries).items() if value is not Left}


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "base"
    tiny_others.stable_diffusion().save_pretrained(folder)
    return folder


NO_PIPELINE = "could not be opened .this version of diffusers has no pipeline"
OWN_CODE = "could not be opened .it contains custom code"
NO_MODEL = "could not be opened .this version of (diffusers|transformers) has no model"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (changed(_class_name=Left), NO_PIPELINE),
        *((changed(_class_name=name), NO_PIPELINE) for name in (None, 3, {}, "", "__version__", "models")),
        (changed(_class_name="NoSuchPipeline"), NO_PIPELINE),
        *((changed(_class_name=name), OWN_CODE) for name in ([], ["a", 3], ["pipeline", "StableDiffusionPipeline"])),
        (changed(_class_name="AutoPipelineForText2Image"), NO_PIPELINE),
        (changed(_class_name="StableDiffusionImg2ImgPipeline"), "which has the same denoiser.$"),
        (changed(_class_name="KolorsPipeline"), "which has the same denoiser.$"),  # needs a package that is not here
        (changed(_class_name="StableCascadeDecoderPipeline"), "those that can are PixArt-α, .*, AuraFlow.$"),
        *(
            (changed(unet=entry), "unet must be a model of diff")
            for entry in ([], ["diffusers"], {}, "x", ["diffusers", 5])
        ),
        (changed(unet=["my_unet", "UNet2DConditionModel"]), "neither a transformer nor a unet|has no denoiser|my_unet"),
        *((changed(unet=["diffusers", name]), NO_MODEL) for name in ("logging", "is_torch_available", "DDIMScheduler")),
        (changed(text_encoder=["transformers", "AutoTokenizer"]), NO_MODEL),
        *((lambda _, other=other: other, "does not hold names and values") for other in ([], None, 3, "x")),
    ],
)
def test_a_folder_that_is_no_base_is_one_whole_sentence(change, sentence, saved, tmp_path):
    """For training, for a plan, and for drawing, which may take a base that cannot be trained."""
    shutil.copytree(saved, tmp_path / "base")
    file = tmp_path / "base" / "model_index.json"
    file.write_text(json.dumps(change(json.loads(file.read_text()))))
    with pytest.raises(atomtune.UserError, match=sentence):
        BaseParts(str(tmp_path / "base"), torch.float32)
    with pytest.raises(atomtune.UserError, match=sentence.replace("opened", "read as a diffusers pipeline")):
        find_parts(tmp_path / "base")
    if "could not be opened" in sentence:
        with pytest.raises(atomtune.UserError, match=sentence):
            load_base(str(tmp_path / "base"))


@pytest.mark.parametrize("name", ["unet", "vae"])
@pytest.mark.parametrize("text", ["[]", "null", "{", '{"in_channels": "x"}', "[" * 100_000, '{"_class_name": 3}'])
def test_a_configuration_of_anything_is_read_or_one_sentence(name, text, saved, tmp_path):
    shutil.copytree(saved, tmp_path / "base")
    (tmp_path / "base" / name / "config.json").write_text(text)
    for work in (lambda base: BaseParts(base, torch.float32), find_parts, load_base):
        with contextlib.suppress(atomtune.UserError):
            work(str(tmp_path / "base"))


def test_models_that_the_pipeline_does_not_take_are_left_out(saved, tmp_path):
    """As diffusers does: a second denoiser is neither trained nor asked for."""
    shutil.copytree(saved, tmp_path / "base")
    shutil.copytree(saved / "unet", tmp_path / "base" / "transformer")
    file = tmp_path / "base" / "model_index.json"
    entry = {"transformer": ["diffusers", "UNet2DConditionModel"]}
    file.write_text(json.dumps(json.loads(file.read_text()) | entry))
    parts = BaseParts(str(tmp_path / "base"), torch.float32)
    assert parts.denoiser == "unet" and "transformer" not in parts.parts
    parts.load(DENOISER)
    assert denoiser(parts.pipe) is parts.pipe.unet
    assert find_parts(tmp_path / "base").denoiser.name == "UNet2DConditionModel"
