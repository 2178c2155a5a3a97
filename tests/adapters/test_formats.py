"""Adapter folders that earlier versions wrote open as they did: D was stored as [C_o, M], and k beside the atoms."""

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from atomtune.steering import board
from atomtune.storage.merging import merge
from tests.adapters.tiny import atom_config, run, transformer, wake


def as_before(folder: Path) -> None:
    """Write the adapter in `folder` again as it was written before."""
    file, before = folder / "adapter_model.safetensors", {}
    for key, tensor in load_file(file).items():
        if ".atoms_floor." in key:
            continue
        if key.endswith("decoder.weight"):
            key, tensor = key.replace("decoder", "dictionary"), tensor.T.contiguous()
        before[key.replace("atoms_sigma.k", "atoms_k")] = tensor
    assert len(before) == 2 * len(("encoder", "dictionary", "gain", "id", "layer", "head", "group", "usage", "k"))
    save_file(before, file)
    config = json.loads((folder / "adapter_config.json").read_text())
    scope = {"topk": "token", "batch_topk": "batch"}[config["activation"]]
    (folder / "adapter_config.json").write_text(json.dumps(config | {"density_scope": scope}))


@pytest.fixture
def saved(tmp_path):
    model = wake(get_peft_model(transformer(), atom_config(num_atoms=18)))
    board(model).density = 0.3
    model.save_pretrained(str(tmp_path / "old"))
    as_before(tmp_path / "old")
    return model, tmp_path / "old"


def test_an_old_folder_opens_as_the_same_adapter(saved):
    model, folder = saved
    again = PeftModel.from_pretrained(transformer(), str(folder))
    assert torch.equal(run(again), run(model))
    assert board(again).density == board(model).density


def test_an_old_folder_merges_as_a_new_one(saved, tmp_path):
    model, folder = saved
    model.save_pretrained(str(tmp_path / "new"))
    both = [
        merge([first, tmp_path / "new"], tmp_path / f"both-{n}") for n, first in enumerate([folder, tmp_path / "new"])
    ]
    one, two = (load_file(path / "adapter_model.safetensors") for path in both)
    assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)
