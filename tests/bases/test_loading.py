"""A base part by part: what is not loaded is hollow."""

import gc
import json
import os
import shutil
import subprocess
import sys
import weakref
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import atomtune
from atomtune import bases
from atomtune.bases import DENOISER, IMAGES, TEXT, BaseParts, denoiser, fingerprint, load_base
from tests.bases.families import BASES
from tests.tiny_pixart import save_tiny_pixart


def real(pipe) -> set[str]:
    """Names of the models whose tensors take memory."""
    models = {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
    return {name for name, part in models.items() if any(p.untyped_storage().nbytes() > 8 for p in part.parameters())}


def test_each_part_is_real_while_it_is_loaded(base):
    parts, whole = BaseParts(base, torch.float32), load_base(base)
    assert real(parts.pipe) == set()
    for kind, name in ((TEXT, "text_encoder"), (IMAGES, "vae"), (DENOISER, "transformer")):
        parts.load(kind)
        assert real(parts.pipe) == {name}
        there, expected = getattr(parts.pipe, name), getattr(whole, name)
        assert not there.training
        for key, tensor in expected.state_dict().items():
            assert torch.equal(there.state_dict()[key], tensor)
        there = weakref.ref(there)
        parts.free(kind)
        gc.collect()
        assert there() is None and real(parts.pipe) == set()


def public(config) -> dict:
    """What a class was built from; the rest says where it was read."""
    return {key: value for key, value in config.items() if not key.startswith("_")}


@pytest.mark.parametrize("name", [each.name for each in BASES])
def test_a_hollow_pipeline_is_as_the_whole_one_but_for_its_numbers(name, tmp_path):
    whole = next(each for each in BASES if each.name == name).pipe()
    whole.save_pretrained(tmp_path)
    parts = BaseParts(str(tmp_path), torch.bfloat16)
    whole, found = load_base(tmp_path, torch.bfloat16), parts.pipe
    assert type(found) is type(whole) and found.name_or_path == str(tmp_path)
    assert found.dtype == whole.dtype and found.device == whole.device
    assert bases.side_multiple(found) == bases.side_multiple(whole)
    for model, expected in ((denoiser(found), denoiser(whole)), (found.vae, whole.vae)):
        assert type(model) is type(expected)
        assert public(model.config) == public(expected.config)
        shapes = {key: tensor.shape for key, tensor in expected.named_parameters()}
        assert {key: tensor.shape for key, tensor in model.named_parameters()} == shapes
    assert parts.fingerprint() == pytest.approx(fingerprint(denoiser(whole)), rel=0.01)


def test_moji_is_whole_from_the_start_and_can_be_freed():
    parts = BaseParts("moji", torch.float32)
    assert real(parts.pipe) == {"text_encoder", "vae", "transformer"}
    assert parts.fingerprint() == fingerprint(parts.pipe.transformer)
    vae = parts.pipe.vae
    parts.drop(IMAGES)
    assert parts.pipe.vae is None
    parts.load(IMAGES)
    again: Any = parts.pipe.vae
    for key, tensor in vae.state_dict().items():
        assert torch.equal(again.state_dict()[key], tensor)


def test_the_weights_of_a_base_in_several_files_are_known_without_loading_them(base, tmp_path):
    whole = load_base(base)
    whole.save_pretrained(tmp_path, max_shard_size="20KB")
    index = json.loads((tmp_path / "transformer" / "diffusion_pytorch_model.safetensors.index.json").read_text())
    assert len({*index["weight_map"].values()}) > 1
    one, several = BaseParts(base, torch.float32), BaseParts(str(tmp_path), torch.float32)
    assert several.fingerprint() == one.fingerprint() == fingerprint(denoiser(whole))


def test_every_process_finds_the_same_digest(base):
    """What is kept under it is found again: names in a set come in another order with another seed of hashes."""
    code = (
        "import sys, torch; from atomtune.bases import BaseParts; "
        "print([BaseParts(name, torch.float32).digest() for name in sys.argv[1:]])"
    )
    command, seeded = [sys.executable, "-c", code, base, "moji"], os.environ | {"PYTHONHASHSEED": "1"}
    other = subprocess.run(command, env=seeded, capture_output=True, text=True, check=True).stdout
    assert other == f"{[BaseParts(name, torch.float32).digest() for name in (base, 'moji')]}\n" and len(other) > 128


def test_bases_that_differ_in_one_last_number_have_different_digests(base, tmp_path):
    whole = load_base(base)
    with torch.no_grad():
        denoiser(whole).transformer_blocks[1].ff.net[2].weight[-1, -1] += 1
    whole.save_pretrained(tmp_path)
    assert BaseParts(str(tmp_path), torch.float32).digest() != BaseParts(base, torch.float32).digest()


@pytest.mark.parametrize("part", ["text_encoder", "vae", "scheduler", "tokenizer"])
def test_bases_that_differ_in_another_part_have_different_digests(base, tmp_path, part):
    """A text encoder, an autoencoder, a sampler or a tokenizer of one's own draws something else too."""
    folder = shutil.copytree(base, tmp_path / "base")
    before = BaseParts(str(folder), torch.float32).digest()
    assert before == BaseParts(base, torch.float32).digest()  # whatever its name
    if part in ("text_encoder", "vae"):
        (file,) = (folder / part).glob("*.safetensors")
        tensors = load_file(file)
        last = max(tensors)
        save_file(tensors | {last: tensors[last] + 1}, file, {"format": "pt"})
    else:
        file = folder / part / {"scheduler": "scheduler_config.json", "tokenizer": "tokenizer_config.json"}[part]
        file.write_text(json.dumps(json.loads(file.read_text()) | {"num_train_timesteps": 500}))
    assert BaseParts(str(folder), torch.float32).digest() != before


def test_a_part_that_cannot_be_read_is_one_sentence(tmp_path):
    save_tiny_pixart(tmp_path / "base")
    parts = BaseParts(str(tmp_path / "base"), torch.float32)
    for file in (tmp_path / "base" / "vae").glob("*.safetensors"):
        file.unlink()
    with pytest.raises(atomtune.UserError, match="could not be opened"):
        parts.load(IMAGES)
    with pytest.raises(atomtune.UserError, match="there is no base model"):
        BaseParts(str(tmp_path / "nothing"), torch.float32)
    (tmp_path / "base" / "transformer" / "diffusion_pytorch_model.safetensors").write_bytes(b"half a file")
    with pytest.raises(atomtune.UserError, match="could not be opened"):
        parts.fingerprint()
    index = tmp_path / "base" / "model_index.json"
    index.write_text(index.read_text().replace("PixArtTransformer2DModel", "Transformer3000"))
    with pytest.raises(atomtune.UserError, match="this version of diffusers has no model Transformer3000"):
        BaseParts(str(tmp_path / "base"), torch.float32)
