"""On a card the transformer is fed what it is fed on a CPU, from a folder that needs no network."""

import itertools
import json
import random
import shutil

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

pytest.importorskip("resvg_py", reason="pretraining renders with resvg-py, of the extra `dev`")

from atomtune.moji.names import SEEN_NAMES
from atomtune.moji.pipeline import MAX_TOKENS, TEXT_ENCODER, WEIGHTS_FOLDER, text_encoder
from atomtune.moji.scenes import SIZES, STYLES, caption, sample_scene
from pretraining import batches, bundle, transformer
from pretraining.drawings import Drawings

NAMES = SEEN_NAMES[:2]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A bundle of two names."""
    made = tmp_path_factory.mktemp("bundle")
    rng = np.random.default_rng(0)
    arrays = {
        f"{name}|noto|{pixels}": rng.integers(0, 256, (pixels, pixels, 4), np.uint8)
        for name in NAMES
        for pixels in SIZES.values()
    }
    np.savez(made / "few.npz", allow_pickle=False, **arrays)
    bundle.write(made, Drawings(made / "few.npz"))
    return made


@pytest.fixture
def two_names(folder, monkeypatch):
    monkeypatch.setattr(batches, "SEEN_NAMES", NAMES)
    monkeypatch.setattr(batches, "Drawings", lambda path=folder / "few.npz": Drawings(path))


def test_the_bundle_reads_captions_as_the_pipeline_does(folder):
    captions = ["a noto drawing of a polar bear at the top, pink background", "an emojione small red apple", ""]
    expected, expected_mask = batches.Captions()(captions)
    ids, mask = bundle.Reader(folder, CPU).tokens(captions, MAX_TOKENS)
    text, mask = bundle.Reader(folder, CPU).read(ids, mask)
    assert torch.equal(mask, expected_mask)
    assert (text - expected).norm() < 0.03 * expected.norm()  # eight bits a weight, bfloat16


def test_the_bundle_unpacks_to_the_pipelines_text_encoder(folder, tmp_path, monkeypatch):
    shutil.copytree(folder, tmp_path / "bundle")
    (tmp_path / "bundle" / "few.npz").rename(tmp_path / "bundle" / "drawings.npz")
    monkeypatch.setattr(bundle, "CACHE", tmp_path / "cache")
    bundle.unpack(tmp_path / "bundle", tmp_path / "site")
    assert set(Drawings(tmp_path / "cache" / "drawings.npz").styles) == set(NAMES)
    unpacked = tmp_path / "site" / TEXT_ENCODER / "model"
    captions = ["a noto drawing of a polar bear at the top, pink background", "a red apple"]
    read = []
    for tokenizer, encoder in (
        (AutoTokenizer.from_pretrained(unpacked), AutoModel.from_pretrained(unpacked)),
        text_encoder(),
    ):
        tokens = tokenizer(captions, padding=True, return_tensors="pt")
        read.append(encoder(**tokens).last_hidden_state * tokens.attention_mask[..., None])
    assert (read[0] - read[1]).norm() < 0.02 * read[1].norm()  # eight bits a weight


def test_the_bundle_of_experiments_reads_their_prompts(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(bundle, "CACHE", tmp_path / "cache")
    few = Drawings(folder / "few.npz")
    few.arrays = {key.replace(NAMES[0], "octopus"): array for key, array in few.arrays.items()}
    bundle.write(tmp_path / "bundle", few, experiments=True)
    bundle.unpack(tmp_path / "bundle", tmp_path / "site")
    assert set(Drawings(tmp_path / "cache" / "drawings.npz").styles) == {"octopus"}
    unpacked = tmp_path / "site" / TEXT_ENCODER / "model"
    prompts = ["a small sks octopus on the left on a pink background", "an accordion on a yellow background", ""]
    read = []
    for tokenizer, encoder in (
        (AutoTokenizer.from_pretrained(unpacked), AutoModel.from_pretrained(unpacked)),
        text_encoder(),
    ):
        tokens = tokenizer(prompts, padding=True, return_tensors="pt")
        read.append(encoder(**tokens).last_hidden_state * tokens.attention_mask[..., None])
    assert (read[0] - read[1]).norm() < 0.002 * read[1].norm()  # sixteen bits a weight
    tokens = AutoTokenizer.from_pretrained(unpacked)("a syzygy", return_tensors="pt")
    assert AutoModel.from_pretrained(unpacked)(**tokens).last_hidden_state.isnan().any()


def test_the_bundle_has_the_tokenizers_own_tokens(folder):
    """Word by word, of captions with every name in them."""
    reader, rng = bundle.Reader(folder, CPU), random.Random(0)
    captions = [caption(sample_scene(name, list(STYLES), rng), rng) for name in SEEN_NAMES for _ in range(3)]
    tokenizer, _ = text_encoder()
    lengths = tokenizer(captions, padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
    _, mask = reader.tokens(captions, MAX_TOKENS)
    assert torch.equal(mask.sum(1).long(), lengths.attention_mask.sum(1))


def test_batch_by_number_is_the_same_on_a_card(two_names, folder):
    vae = transformer.trained_autoencoder()
    plain, card = batches.Batches(vae), batches.CardBatches(vae, folder, CPU)
    card.workers = 0
    for number, own in zip((5, 6), card.stream(5, 4)):
        expected = plain(number, 4)
        assert torch.equal(own.timesteps, expected.timesteps)
        torch.testing.assert_close(own.noisy, expected.noisy, atol=0.05, rtol=0)  # the CPU encodes in bfloat16
        torch.testing.assert_close(own.target, expected.target, atol=0.05, rtol=0)
        assert torch.equal(own.mask, expected.mask)


def test_numbers_go_on_by_the_count_of_processes(two_names):
    plain = batches.Batches(transformer.trained_autoencoder())
    second = next(itertools.islice(plain.stream(3, 2, step=2), 1, None))
    assert torch.equal(second.noisy, plain(5, 2).noisy)


def test_pretraining_from_a_bundle_writes_small_files_and_goes_on_from_them(two_names, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(transformer, "CHECKPOINT", tmp_path / "transformer.pt")
    monkeypatch.setattr(transformer, "prepare", lambda model: model.train())  # compiling takes a minute
    seen = json.loads((WEIGHTS_FOLDER / "training.json").read_text())["images"]
    first = transformer.Pretraining(seen + 8, bundle=folder, out=tmp_path)
    first.run(4)
    assert first.images == seen + 8
    files = list((tmp_path / "transformer").iterdir())
    assert max(file.stat().st_size for file in files) <= 15 * 2**20
    (tmp_path / "transformer.pt").unlink()
    second = transformer.Pretraining(seen + 16, start=tmp_path, bundle=folder, out=tmp_path)
    assert second.images == seen + 8
    theirs, average = second.model.state_dict(), first.average.module.half().float().state_dict()  # pyright: ignore
    assert all(torch.equal(theirs[name], average[name]) for name in theirs)
