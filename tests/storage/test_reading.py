"""What an adapter folder says of itself, and what is refused before anything is loaded."""

import json
import os

import huggingface_hub.constants
import pytest
from peft import get_peft_model
from torch.testing import assert_close

from atomtune import AtomConfig, UserError, merge
from atomtune.bases import (
    load_base,
)
from atomtune.prompts import Subject
from atomtune.storage.folders import load_adapter, save_adapter
from atomtune.storage.metadata import CONFIG_FILE, WEIGHTS_FILE
from atomtune.storage.reading import adapter_info, words_of
from tests.tiny_pixart import adapted, draw, tiny_pixart


def test_the_header_names_every_subject(base, tmp_path):
    words = [
        {"token": "sks", "class_name": "dog", "backgrounds": ["red"]},
        {"token": "ohwx", "class_name": "garden gnome"},
    ]
    save_adapter(adapted(base).transformer, tmp_path / "two", base=base, subjects=words, license="mit")
    info = adapter_info(tmp_path / "two")
    assert info.trained_for == {"subjects": words, "license": "mit"}
    assert info.subjects == [Subject("sks", "dog", ("red",)), Subject("ohwx", "garden gnome")]
    assert info.prompts(1) == ["a sks dog on a red background", "a ohwx garden gnome"]
    save_adapter(adapted(base).transformer, tmp_path / "one", base=base, **words_of([Subject("zwx", "cat")]))
    assert adapter_info(tmp_path / "one").metadata["token"] == "zwx"
    merge([tmp_path / "two", tmp_path / "one"], tmp_path / "merged")
    assert [str(subject) for subject in adapter_info(tmp_path / "merged").subjects] == [
        "sks dog",
        "ohwx garden gnome",
        "zwx cat",
    ]


@pytest.mark.parametrize("subjects", [[{"token": 1}], [{"backgrounds": "red"}], [{"subjects": [1]}]])
def test_subjects_of_another_kind_are_refused(base, tmp_path, subjects):
    save_adapter(adapted(base).transformer, tmp_path / "two", base=base, subjects=subjects)
    with pytest.raises(UserError, match="subjects is"):
        adapter_info(tmp_path / "two")


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


def test_an_adapter_comes_from_the_hub(base, tmp_path, monkeypatch):
    """The download itself is a mock, because there is no hub here."""
    pipe = adapted(base)
    save_adapter(pipe, tmp_path / "a", base=base)
    asked = []

    def snapshot_download(repo_id: str, **options) -> str:
        asked.append(repo_id)
        return str(tmp_path / "a")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    again = load_base(base)
    load_adapter(again, "someone/teapot")
    assert asked == ["someone/teapot"]
    assert_close(draw(again), draw(pipe), atol=0, rtol=0)
    (tmp_path / "a" / "adapter_config.json").unlink()
    with pytest.raises(UserError, match=r"the hub's 'someone/teapot' holds no adapter_config.json"):
        load_adapter(load_base(base), "someone/teapot")


def test_an_adapter_that_the_hub_does_not_have_is_refused(base, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"the adapter 'nobody/nothing' could not be fetched .* a finished run"):
        load_adapter(load_base(base), "nobody/nothing")


def test_an_adapter_that_names_no_base_is_refused_where_its_base_is_asked_for(base, tmp_path):
    adapted(base).transformer.save_pretrained(str(tmp_path), save_embedding_layers=False)
    config = json.loads((tmp_path / CONFIG_FILE).read_text()) | {"base_model_name_or_path": None}
    (tmp_path / CONFIG_FILE).write_text(json.dumps(config))
    load_adapter(load_base(base), tmp_path)
    with pytest.raises(UserError, match="does not name the base that it was trained on: give --base"):
        adapter_info(tmp_path).base  # noqa: B018


BROKEN = {
    "no weights": (lambda folder: (folder / WEIGHTS_FILE).unlink(), "there is no adapter_model.safetensors"),
    "cut weights": (lambda folder: os.truncate(folder / WEIGHTS_FILE, 900), "cannot be read"),
    "no method": (lambda folder: (folder / "adapter_config.json").write_text("{}"), "names no method that PEFT knows"),
    "no mapping": (lambda folder: (folder / "adapter_config.json").write_text("[]"), "names no method that PEFT knows"),
    "other method": (
        lambda folder: (folder / "adapter_config.json").write_text('{"peft_type": "X"}'), "names no method that PEFT"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_adapter_is_refused_before_a_base_is_opened(tmp_path, name):
    pipe = tiny_pixart()
    pipe.transformer = get_peft_model(pipe.transformer, AtomConfig(target_modules=["attn1"], num_atoms=4, density=0.5))
    folder = save_adapter(pipe, tmp_path / "a", base="tiny")
    spoil, sentence = BROKEN[name]
    spoil(folder)
    with pytest.raises(UserError, match=sentence):
        adapter_info(folder)
