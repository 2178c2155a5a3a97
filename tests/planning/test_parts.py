"""The configurations of known bases give models of the published sizes; folders and pipelines give the same parts."""

import json
from decimal import Decimal

import huggingface_hub
import pytest
import torch

from atomtune.bases import load_base, native_resolution
from atomtune.errors import UserError
from atomtune.planning.inputs import INPUTS
from atomtune.planning.memory import plan_memory
from atomtune.planning.parts import CONFIGS, SHARED, Part, find_parts, known_bases, parts_of
from tests.bases.families import BASES

SHIPPED = json.loads((CONFIGS / SHARED).read_text(encoding="utf-8"))
FILES = sorted(file.name for file in CONFIGS.iterdir() if file.name.endswith(".json") and file.name != SHARED)


def read(file: str) -> dict:
    return json.loads((CONFIGS / file).read_text(encoding="utf-8"))


def built(described: dict) -> torch.nn.Module:
    return Part(described["library"], described["class"], described["config"]).build(torch.bfloat16)


def count(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", SHIPPED)
def test_shared_parts_have_their_exact_number_of_parameters(name):
    assert count(built(SHIPPED[name])) == SHIPPED[name]["parameters"]


@pytest.mark.parametrize("file", FILES)
def test_denoisers_have_the_published_number_of_parameters(file):
    """Exactly the number that is written down, which is, rounded as it was published, the published one."""
    content = read(file)
    (described,) = [part for part in content["parts"].values() if isinstance(part, dict)]
    model = built(described)
    assert count(model) == described["parameters"]
    published = Decimal(content["published"]["size"].removesuffix("B"))
    whole = count(model) - content["published"].get("later", 0)
    if "counts the table of positions" in content["published"]["where"]:
        whole += sum(buffer.numel() for buffer in model.buffers())
    assert (Decimal(whole) / 10**9).quantize(published) == published
    assert content["source"] and described["class"] in INPUTS


@pytest.mark.parametrize("name", known_bases())
def test_known_bases_open_without_the_network(name, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("it asked the network"))
    parts = find_parts(name)
    assert parts.resolution in (512, 1024) and parts.text_encoders and parts.tokens >= 77


def test_the_bases_that_are_promised_to_work_are_known():
    assert {base.real for base in BASES} <= set(known_bases())


def test_of_a_hub_name_the_configurations_alone_are_fetched(base, monkeypatch):
    """`snapshot_download` is a stand-in for the hub: it gives a folder that is here."""
    asked = []

    def fetched(name, allow_patterns):
        asked.append((name, allow_patterns))
        return base

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetched)
    found = plan_memory("someone/something", 64, quantize="int8")
    assert asked == [("someone/something", ["model_index.json", "*/config.json"])]
    weights = sum(p.nbytes for p in load_base(base, "bfloat16").text_encoder.parameters())
    assert found.base == "someone/something" and 0 < found.needs[0].encoding["text_encoder"].weights < weights


def test_a_folder_of_configurations_gives_the_parts_of_its_pipeline(base, tmp_path):
    """Without its weights."""
    from pathlib import Path

    for file in [Path(base) / "model_index.json", *Path(base).glob("*/config.json")]:
        copy = tmp_path / file.relative_to(base)
        copy.parent.mkdir(exist_ok=True)
        copy.write_bytes(file.read_bytes())
    found, opened = find_parts(tmp_path), parts_of(load_base(base))
    assert (found.pipeline, found.tokens) == (opened.pipeline, opened.tokens)
    assert found.resolution == native_resolution(load_base(base))
    pairs = [(found.denoiser, opened.denoiser), (found.autoencoder, opened.autoencoder)]
    for one, other in [*pairs, *zip(found.text_encoders.values(), opened.text_encoders.values(), strict=True)]:
        shapes = [
            [(name, each.shape) for name, each in part.build(torch.float32).named_parameters()] for part in (one, other)
        ]
        assert shapes[0] == shapes[1]


def test_what_is_no_base_is_refused_with_the_known_ones(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"there is no base 'nothing': expected 'moji'.*FLUX.1-dev"):
        find_parts("nothing")
    (tmp_path / "model_index.json").write_text('{"_class_name": "NoSuchPipeline"}')
    with pytest.raises(UserError, match="could not be read as a diffusers pipeline"):
        find_parts(tmp_path)

    def offline(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(UserError, match=r"could not be fetched .no route to host.*Without the network.*FLUX.1-dev"):
        find_parts("someone/something")


@pytest.mark.parametrize("name", [each.name for each in BASES])
def test_a_folder_is_planned_at_the_size_that_its_pipeline_draws(name, tmp_path):
    pipe = next(each for each in BASES if each.name == name).pipe()
    pipe.save_pretrained(tmp_path)
    try:
        expected = native_resolution(pipe)
    except UserError:
        expected = None
    assert find_parts(tmp_path).resolution == expected
