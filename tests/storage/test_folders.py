"""Adapter folders, and adapters on the base they belong to."""

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from diffusers import SD3Transformer2DModel
from peft import LoraConfig, OFTConfig, PeftModel, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from atomtune import AtomConfig, UserError, board, merge
from atomtune.bases import (
    denoiser,
    fingerprint,
    load_base,
)
from atomtune.storage.cards import read_card
from atomtune.storage.folders import load_adapter, save_adapter
from atomtune.storage.metadata import CONFIG_FILE, WEIGHTS_FILE
from atomtune.storage.reading import ADAPTER_FILES, adapter_info
from tests.tiny_pixart import adapted, draw, save_tiny_pixart


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
    assert (info.base, info.metadata["token"]) == (base, "sks")
    assert read_card(tmp_path / "run" / "adapter") == "# dog"


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


def test_the_header_and_the_card_tell_what_it_is_without_loading_it(base, tmp_path):
    pipe = adapted(base, AtomConfig(target_modules=["attn1"], num_atoms=8, density=0.25))
    save_adapter(pipe, tmp_path / "a", base="someone/base", token="sks", class_name="dog", license="cc-by-4.0")
    with safe_open(tmp_path / "a" / "adapter_model.safetensors", "pt") as file:
        told = file.metadata()
    layers = len(pipe.transformer.base_model.targeted_module_names)
    assert told == {
        "format": "pt",
        "library": "atomtune",
        "peft_type": "ATOMS",
        "base_model": "someone/base",
        "base_hash": told["base_hash"],
        "base_fingerprint": json.dumps(fingerprint(denoiser(pipe))),
        "token": "sks",
        "class_name": "dog",
        "license": "cc-by-4.0",
        "num_atoms": str(8 * layers),
        "density": "0.25",
        "activation": "topk",
    }
    save_adapter(adapted(base), tmp_path / "same base", base=base)
    with safe_open(tmp_path / "same base" / "adapter_model.safetensors", "pt") as file:
        assert file.metadata()["base_hash"] == told["base_hash"] and "token" not in file.metadata()
    card = (tmp_path / "a" / "README.md").read_text()
    _, front, rest = card.split("---\n", 2)
    assert yaml.safe_load(front) == {
        "base_model": "someone/base",
        "license": "cc-by-4.0",
        "library_name": "peft",
        "pipeline_tag": "text-to-image",
        "tags": ["atomtune", "atoms"],
    }
    assert rest.startswith("```python\nimport atomtune\n")


def test_saving_needs_an_adapter_and_a_name_for_the_base(base, tmp_path):
    with pytest.raises(UserError, match="PixArtTransformer2DModel carries no adapter"):
        save_adapter(load_base(base), tmp_path / "a")
    with pytest.raises(UserError, match="give the base's name"):
        save_adapter(adapted(base).transformer, tmp_path / "a")


def test_saving_replaces_the_adapters_own_files_alone(base, tmp_path):
    project = tmp_path / "project"
    (project / "photos").mkdir(parents=True)
    for name in ("train.py", "photos/cat.jpg", "adapter_model.bin"):
        (project / name).write_text("theirs")
    for token in ("sks", "zwx"):
        save_adapter(adapted(base), project, token=token)
        assert adapter_info(project).metadata["token"] == token
        assert f"# {token}" in (project / "README.md").read_text()
    assert {path.name for path in project.iterdir()} == {*ADAPTER_FILES, "train.py", "photos", "adapter_model.bin"}
    assert all((project / name).read_text() == "theirs" for name in ("train.py", "photos/cat.jpg", "adapter_model.bin"))
    assert len({(project / name).stat().st_mode for name in (*ADAPTER_FILES, "train.py")}) == 1  # the umask's


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_readme_of_the_user_stays(base, tmp_path, when, caplog):
    if when == "after":
        save_adapter(adapted(base), tmp_path / "a", token="sks")
    (tmp_path / "a").mkdir(exist_ok=True)
    (tmp_path / "a" / "README.md").write_text("my own words")
    for _ in range(2):
        save_adapter(adapted(base), tmp_path / "a", token="zwx")
        assert (tmp_path / "a" / "README.md").read_text() == "my own words"
        assert "README.md is not as atomtune wrote it, and stays as it is" in caplog.text
    assert adapter_info(tmp_path / "a").metadata["token"] == "zwx"


def test_a_hot_swapped_adapter_is_the_other_one(base, tmp_path):
    one, two = adapted(base), adapted(base)
    for parameter in two.transformer.parameters():
        if parameter.requires_grad:
            parameter.data.mul_(-0.7)
    save_adapter(two, tmp_path / "two", base=base)
    board(one).drop(["L0[2]"])
    board(one)["L0[1]"].gain = 0.2
    board(one).schedule = {1000: 0.3, 0: 0.1}
    draw(one)
    load_adapter(one, tmp_path / "two", hotswap=True)
    assert_close(draw(one), draw(two), atol=0, rtol=0)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"activation": "soft"}, "its activation is 'soft' and was 'topk': load it under another name instead"),
        ({"num_atoms": 9}, r"atoms_decoder.weight is \[9, \d+\] and was \[8, \d+\]"),
        ({"target_modules": ["attn2"]}, r"attn1.atoms_decoder.weight is None and was \[8, \d+\]"),
    ],
)
def test_an_adapter_of_another_form_is_not_swapped_in_half(base, tmp_path, options, message):
    one = adapted(base)
    before = draw(one)
    other = adapted(base, AtomConfig(**{"target_modules": ["attn1"], "num_atoms": 8} | options))
    save_adapter(other, tmp_path / "other", base=base)
    with pytest.raises(UserError, match=message):
        load_adapter(one, tmp_path / "other", hotswap=True)
    assert torch.equal(draw(one), before)
    with pytest.raises(UserError, match="there is no adapter 'second' to swap"):
        load_adapter(one, tmp_path / "other", "second", hotswap=True)


@pytest.mark.parametrize(
    "config",
    [
        AtomConfig(target_modules=["attn1"], num_atoms=8),
        LoraConfig(r=2, target_modules=["to_q"]),
        OFTConfig(r=2, oft_block_size=0, target_modules=["to_q"]),
    ],
    ids=["atoms", "lora", "oft"],
)
def test_peft_alone_opens_what_we_saved_and_warns_of_nothing(base, tmp_path, config):
    pipe = adapted(base, config)
    save_adapter(pipe, tmp_path / "a", token="sks", class_name="dog", license="cc-by-4.0")
    saved = json.loads((tmp_path / "a" / CONFIG_FILE).read_text())
    assert saved.keys() <= {field.name for field in dataclasses.fields(config)}
    assert saved["auto_mapping"].keys() == {"base_model_class", "parent_library"}  # PEFT's own
    again = load_base(base)
    again.transformer = PeftModel.from_pretrained(again.transformer, str(tmp_path / "a"))
    assert_close(draw(again), draw(pipe), atol=0, rtol=0)


def as_earlier_versions_wrote_it(folder: Path) -> None:
    """Our fields in `adapter_config.json`, under PEFT's `auto_mapping`."""
    info = adapter_info(folder)
    card = str(read_card(folder))
    (folder / "README.md").write_text(card)
    digest = {"card": hashlib.sha256(card.encode()).hexdigest()[:16]}
    config = info.config | {"auto_mapping": info.config["auto_mapping"] | info.metadata | digest}
    (folder / CONFIG_FILE).write_text(json.dumps(config))
    save_file(load_file(folder / WEIGHTS_FILE), folder / WEIGHTS_FILE, {"format": "pt"})


def test_a_folder_of_an_earlier_version_says_the_same(base, other_base, tmp_path):
    pipe = adapted(base)
    save_adapter(pipe, tmp_path / "a", token="sks", class_name="dog", license="cc-by-4.0")
    info = adapter_info(tmp_path / "a")
    as_earlier_versions_wrote_it(tmp_path / "a")
    assert adapter_info(tmp_path / "a").metadata == info.metadata
    with pytest.raises(UserError, match="was trained on the base"):
        load_adapter(load_base(other_base), tmp_path / "a")
    save_adapter(pipe, tmp_path / "a", token="zwx")  # the card there is known as ours, and nothing earlier is left
    assert "# zwx" in (tmp_path / "a" / "README.md").read_text()
    assert adapter_info(tmp_path / "a").metadata.keys() == {"base_fingerprint", "token"}


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    save_tiny_pixart(tmp_path / "base")
    pipe = load_base("~/base")
    pipe.transformer = get_peft_model(pipe.transformer, AtomConfig(target_modules=["attn1"], num_atoms=4, density=0.5))
    assert save_adapter(pipe, "~/a", base="~/base") == tmp_path / "a"
    assert adapter_info("~/a").base == str(tmp_path / "base")
    assert merge(["~/a", "~/a"], "~/both") == tmp_path / "both"
    load_adapter(load_base("~/base"), "~/both")
