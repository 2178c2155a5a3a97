"""merge: adapter folders into one, without their base."""

import shutil
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch.testing import assert_close

from atomtune.errors import UserError
from atomtune.steering import board
from atomtune.storage.folders import save_adapter
from atomtune.storage.merging import merge, parts_of
from atomtune.storage.metadata import CONFIG_FILE, WEIGHTS_FILE, write_weights
from atomtune.storage.reading import ADAPTER_FILES, adapter_info
from tests.adapters.test_combining import OTHERS, pair
from tests.adapters.tiny import run, transformer


@pytest.fixture
def folders(tmp_path):
    def saved(first: dict[str, Any] | None = None, other: dict[str, Any] | None = None) -> tuple[Any, list]:
        model = pair(first, other)
        for name, token in (("one", "sks"), ("two", "openmoji")):
            save_adapter(model, tmp_path / name, base="tiny", adapter_name=name, token=token, class_name="drawing")
        return model, [tmp_path / "one", tmp_path / "two"]

    return saved


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("combination_type", ["cat", "linear"])
def test_folders_merge_as_loaded_adapters_do(folders, tmp_path, other, combination_type):
    if combination_type == "linear" and other != "same shape":
        pytest.skip("linear is for equal shapes")
    model, both = folders(other=OTHERS[other])
    model.add_weighted_adapter(["one", "two"], [1, 0.7], "c", combination_type=combination_type)
    model.set_adapter("c")
    again: Any = PeftModel.from_pretrained(transformer(), str(merge(both, tmp_path / "c", combination_type, [1, 0.7])))
    assert_close(run(again), run(model), atol=1e-6, rtol=1e-6)
    assert [atom.address for atom in board(again)] == [atom.address for atom in board(model, "c")]
    assert not torch.allclose(run(again), run(transformer()))


def test_the_folder_says_what_went_in(folders, tmp_path):
    _, both = folders(other=OTHERS["another size"])
    merge(both, tmp_path / "c", weights=[1, 0.7])
    assert parts_of(tmp_path / "c") == [
        {"adapter": str(both[0]), "weight": 1.0, "first_id": 0, "token": "sks", "class_name": "drawing"},
        {"adapter": str(both[1]), "weight": 0.7, "first_id": 18, "token": "openmoji", "class_name": "drawing"},
    ]
    assert parts_of(both[0]) == []
    card = (tmp_path / "c" / "README.md").read_text()
    assert "import atomtune" in card and f"| `{both[1]}` | 0.7 | 18 |" in card
    assert adapter_info(tmp_path / "c").base == "tiny"
    merge([tmp_path / "c", both[0]], tmp_path / "d")
    assert parts_of(tmp_path / "d")[0]["merged_from"] == parts_of(tmp_path / "c")
    assert parts_of(tmp_path / "d")[1]["first_id"] == 25


@pytest.mark.parametrize("licenses", [("cc-by-4.0", "cc-by-4.0"), ("cc-by-4.0", None)])
def test_the_license_of_the_merged_adapter_is_that_of_all_or_none(tmp_path, licenses):
    model = pair()
    for name, license in zip(("one", "two"), licenses):
        save_adapter(model, tmp_path / name, base="tiny", adapter_name=name, license=license)
    merge([tmp_path / "one", tmp_path / "two"], tmp_path / "c")
    assert adapter_info(tmp_path / "c").metadata.get("license") == licenses[1]


def test_refusals_are_sentences_and_write_nothing(folders, tmp_path):
    _, both = folders(other={"activation": "soft"})
    with pytest.raises(UserError, match="cannot become one adapter, because their activation differs"):
        merge(both, tmp_path / "c")
    with pytest.raises(UserError, match="one weight for each adapter, got 3 for 2"):
        merge(both, tmp_path / "c", weights=[1, 2, 3])
    with pytest.raises(UserError, match="combination_type must be cat or linear, got 'svd'"):
        merge(folders()[1], tmp_path / "c", combination_type="svd")
    with pytest.raises(UserError, match="at least two adapters"):
        merge(both[:1], tmp_path / "c")
    with pytest.raises(UserError, match="there is no adapter in"):
        merge([both[0], tmp_path / "nothing"], tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_adapters_of_different_bases_are_refused(folders, tmp_path):
    _, both = folders()
    metadata = adapter_info(both[1]).metadata
    metadata["base_fingerprint"] = [1.0] * len(metadata["base_fingerprint"])
    write_weights(both[1], load_file(both[1] / WEIGHTS_FILE), metadata)
    with pytest.raises(UserError, match="were trained on different bases"):
        merge(both, tmp_path / "c")


def test_adapters_of_other_methods_and_whole_modules_are_refused(folders, tmp_path):
    _, both = folders()
    get_peft_model(transformer(), LoraConfig(r=2, target_modules=["to_v"])).save_pretrained(str(tmp_path / "lora"))
    with pytest.raises(UserError, match="is of the method LORA: merge it with PEFT's own"):
        merge([both[0], tmp_path / "lora"], tmp_path / "c")
    model = pair({"modules_to_save": ["proj_out"]})
    save_adapter(model, tmp_path / "whole", base="tiny", adapter_name="one")
    with pytest.raises(UserError, match=r"carries whole modules \(proj_out\), which cannot be merged"):
        merge([tmp_path / "whole", both[1]], tmp_path / "c")


def test_an_output_that_contains_or_is_an_input_is_refused_and_everything_stays(folders, tmp_path):
    _, both = folders()
    (tmp_path / "run").mkdir()
    run = shutil.copytree(both[0], tmp_path / "run" / "adapter").parent
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    for out in (tmp_path, both[0], run, run / "adapter", run / "..", f"{both[1]}/"):
        with pytest.raises(UserError, match=r"the output .* contains the input"):
            merge([*both, run], out)
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before
    shutil.copytree(both[0], tmp_path / "trained")
    for name in CONFIG_FILE, WEIGHTS_FILE:
        with pytest.raises(UserError, match="trained holds an adapter that was not made by merge"):
            merge(both, tmp_path / "trained")
        (tmp_path / "trained" / name).unlink()


def test_merging_again_replaces_the_merged_adapter_alone(folders, tmp_path):
    _, both = folders()
    merge(both, tmp_path / "c")
    (tmp_path / "c" / "notes.txt").write_text("theirs")
    merge(both, tmp_path / "c", weights=[1, 0.5])
    assert [part["weight"] for part in parts_of(tmp_path / "c")] == [1, 0.5]
    assert "| 0.5 |" in (tmp_path / "c" / "README.md").read_text()
    assert {path.name for path in (tmp_path / "c").iterdir()} == {*ADAPTER_FILES, "notes.txt"}
