"""Adapters from somebody else: what they ask for is refused in one sentence, before memory is taken or code runs."""

import json
import os
import pickle
import shutil
import struct
import time
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save, save_file

from atomtune import AtomConfig, UserError
from atomtune.bases import denoiser, load_base
from atomtune.storage.folders import load_adapter, save_adapter
from atomtune.storage.metadata import CONFIG_FILE, WEIGHTS_FILE
from atomtune.storage.reading import adapter_info
from tests.tiny_pixart import adapted, tiny_pixart


@pytest.fixture
def saved(base, tmp_path):
    """A folder with atoms, and one with a LoRA, on the base of the tests."""
    return {
        name: save_adapter(adapted(base, config), tmp_path / name)
        for name, config in (("atoms", None), ("lora", LoraConfig(r=2, target_modules=["to_q"])))
    }


def change_config(folder: Path, **values) -> None:
    config = json.loads((folder / CONFIG_FILE).read_text())
    (folder / CONFIG_FILE).write_text(json.dumps(config | values))


def change_weights(folder: Path, change) -> None:
    tensors = load_file(folder / WEIGHTS_FILE)
    change(tensors)
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / WEIGHTS_FILE)


@pytest.mark.parametrize(
    "kind, values, sentence",
    [
        ("atoms", {"num_atoms": 10**12}, "asks for num_atoms = 1000000000000, and the largest size in its weights is"),
        ("atoms", {"num_atoms_pattern": {"attn1": 10**12}}, "asks for num_atoms_pattern of 'attn1' = 1000000000000"),
        ("lora", {"r": 10**9}, "asks for r = 1000000000, and the largest size in its weights is 16"),
        ("lora", {"rank_pattern": {"to_q": 1e300}}, "asks for rank_pattern of 'to_q' = 1e"),
        (
            "lora",
            {"megatron_config": {"a": 1}, "megatron_core": "antigravity"},
            "has megatron_config, which makes PEFT",
        ),
        ("lora", {"megatron_core": "antigravity"}, "has megatron_core, which makes PEFT import, read or change"),
        ("lora", {"layer_replication": [[0, 10**9]]}, "has layer_replication"),
        ("lora", {"target_modules": "(a+)+$"}, r"has the regular expression .* which could take very long"),
        ("lora", {"rank_pattern": {"(.*|.)*x": 2}}, r"has the regular expression .* which could take very long"),
        ("lora", {"target_modules": "(((" * 20}, r"has the regular expression .* which cannot be read"),
        ("lora", {"base_model_name_or_path": ["a"]}, "base_model_name_or_path in .* must be a name"),
        ("lora", {"peft_type": "XLORA"}, "is of PEFT's method XLORA, which does not adapt the layers"),
        ("atoms", {"auto_mapping": {"base_fingerprint": "x"}}, None),  # the header's own counts
    ],
)
def test_what_a_configuration_asks_for_is_refused_before_a_base_is_opened(saved, kind, values, sentence):
    change_config(saved[kind], **values)
    if sentence is None:
        adapter_info(saved[kind])
        return
    start = time.monotonic()
    with pytest.raises(UserError, match=sentence):
        adapter_info(saved[kind])
    assert time.monotonic() - start < 2


@pytest.mark.parametrize(
    "values, sentence",
    [
        ({"num_atoms": "many"}, "its adapter_config.json does not fit"),
        ({"density": "x"}, "its adapter_config.json does not fit"),
        ({"num_atoms_pattern": {"attn1": 7.5}}, "its adapter_config.json does not fit"),
        ({"activation": 3}, "its adapter_config.json does not fit"),
        ({"layers_to_transform": {"a": 1}}, "its adapter_config.json does not fit"),
        ({"floor": 7.0}, "floor must be from 0"),
    ],
)
def test_options_of_another_kind_are_refused(base, saved, values, sentence):
    change_config(saved["atoms"], **values)
    with pytest.raises(UserError, match=sentence):
        load_adapter(load_base(base), saved["atoms"])


def test_usual_regular_expressions_are_read(saved):
    flux = r"(.*x_embedder|.*(?<!single_)transformer_blocks\.[0-9]+\.attn\.to_[kqv]|.*single_blocks\.\d+\.norm)"
    for pattern in (flux, r".*\.(\d+)\.attn1\.to_q", r"^transformer\.h\.(0|1|2)\.attn.*$"):
        change_config(saved["lora"], target_modules=pattern)
        adapter_info(saved["lora"])


def test_equal_keys_are_refused(saved):
    file = saved["atoms"] / CONFIG_FILE
    file.write_text(file.read_text().rstrip()[:-1] + ', "num_atoms": 4}')
    with pytest.raises(UserError, match="the key 'num_atoms' is there twice"):
        adapter_info(saved["atoms"])


def test_a_header_that_claims_a_terabyte_takes_no_memory(saved):
    file = saved["lora"] / WEIGHTS_FILE
    right = file.read_bytes()
    length = struct.unpack("<Q", right[:8])[0]
    header = json.loads(right[8 : 8 + length])
    name = next(key for key in header if key != "__metadata__")
    for entry in ({"shape": [2**38]}, {"shape": [2**38], "data_offsets": [0, 2**40]}, {"shape": "x"}):
        text = json.dumps(header | {name: header[name] | entry}).encode()
        file.write_bytes(struct.pack("<Q", len(text)) + text + right[8 + length :])
        with pytest.raises(UserError, match=r"the weights in .* cannot be read"):
            adapter_info(saved["lora"])
    file.write_bytes(struct.pack("<Q", 2**40) + right[8:])
    with pytest.raises(UserError, match="its header is longer than the file"):
        adapter_info(saved["lora"])


class Bomb:
    """A pickle that makes a folder when it is read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def test_pickle_is_refused_by_name_and_never_read(base, saved, tmp_path):
    raw = pickle.dumps(Bomb(tmp_path / "ran"))
    (saved["atoms"] / WEIGHTS_FILE).write_bytes(raw)
    with pytest.raises(UserError, match="it is a pickle, which may run any code"):
        load_adapter(load_base(base), saved["atoms"])
    (saved["atoms"] / WEIGHTS_FILE).unlink()
    (saved["atoms"] / "adapter_model.bin").write_bytes(raw)
    with pytest.raises(UserError, match=r"adapter_model.bin is a pickle, which may run any code"):
        load_adapter(load_base(base), saved["atoms"])
    assert not (tmp_path / "ran").exists()


def test_a_header_of_the_length_that_begins_like_a_pickle_is_none(tmp_path):
    """0x0280 = 640 and 0x4b50, "PK", are lengths like any other."""
    for length in (0x0280, 0x4B50):
        raw = save({"a.lora_A.weight": torch.zeros(1)}, {"x": ""})
        size = struct.unpack("<Q", raw[:8])[0]
        text = raw[8 : 8 + size].rstrip().ljust(length)
        (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", length) + text + raw[8 + size :])
        from atomtune.lora.loading import read

        assert read(tmp_path / "a.safetensors").keys() == {"a.lora_A.weight"}


@pytest.mark.parametrize("kind", ["atoms", "lora"])
@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_numbers_that_are_none_are_refused(base, saved, kind, number):
    name = {"atoms": "atoms_encoder.weight", "lora": "lora_A.weight"}[kind]

    def change(tensors):
        tensors[next(key for key in tensors if key.endswith(name))].view(-1)[0] = number

    change_weights(saved[kind], change)
    with pytest.raises(UserError, match="holds what is not a finite number: the training that wrote it has diverged"):
        load_adapter(load_base(base), saved[kind])


@pytest.mark.parametrize(
    "tensor, value, sentence",
    [
        ("head", 10**9, "head must be from 0 to 1, got .* to 1000000000"),
        ("head", -1, "head must be from 0 to 1, got -1"),
        ("group", 10**12, "group must be from 0 to 0, got"),
        ("id", -5, "id must be from 0 to"),
        ("sigma.k", -1, "sigma.k must be 1 or more for a group that has atoms"),
        ("sigma.k", 0, "sigma.k must be 1 or more for a group that has atoms"),
    ],
)
def test_atoms_that_no_layer_has_are_refused(base, saved, tensor, value, sentence):
    def change(tensors):
        key = next(key for key in tensors if key.endswith(f"atoms_{tensor}"))
        tensors[key].view(-1)[-1] = value

    change_weights(saved["atoms"], change)
    with pytest.raises(UserError, match=sentence):
        load_adapter(load_base(base), saved["atoms"])


def test_atoms_that_do_not_fit_into_memory_are_refused_before_it_is_taken():
    for targets in (["attn1"], ["to_v"]):
        config = AtomConfig(target_modules=targets, num_atoms=10**12)
        with pytest.raises(UserError, match=r"num_atoms = 1,000,000,000,000 would need [\d,]+ GiB, and [\d,]+ GiB of"):
            get_peft_model(denoiser(tiny_pixart()), config)


def test_a_base_of_pickles_or_with_code_is_refused(base, tmp_path):
    shutil.copytree(base, tmp_path / "pickled")
    weights = tmp_path / "pickled" / "transformer" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(weights), weights.with_suffix(".bin"))
    weights.unlink()
    with pytest.raises(UserError, match=r"could not be opened .*safetensors"):
        load_base(tmp_path / "pickled")

    shutil.copytree(base, tmp_path / "code")
    index = json.loads((tmp_path / "code" / "model_index.json").read_text()) | {"_class_name": ["mine", "Mine"]}
    (tmp_path / "code" / "model_index.json").write_text(json.dumps(index))
    ran = tmp_path / "ran"
    (tmp_path / "code" / "mine.py").write_text(f"open({str(ran)!r}, 'w')\nclass Mine: pass\n")
    with pytest.raises(UserError, match="contains custom code"):
        load_base(tmp_path / "code")
    assert not ran.exists()
