"""The folder of a run, as every command writes it."""

import json
from pathlib import Path

import pytest
import yaml

from atomtune import manifest
from atomtune.errors import UserError
from atomtune.storage.metadata import CONFIG_FILE, WEIGHTS_FILE
from atomtune.storage.runs import NAMES, refuse_taken, settings_of, training_of, write_run

TRAINING = {"images": "photos/teapot", "class_name": "teapot", "out": "runs/teapot"}


def written(out: Path, command: str = "prune", training: dict | None = None) -> Path:
    def save(folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        for name in (CONFIG_FILE, WEIGHTS_FILE, "README.md"):
            (folder / name).write_text("12345")

    out.mkdir(exist_ok=True)
    write_run(out, save, command, {"adapter": Path("runs/teapot"), "keep": 40, "from": (1, 2)}, {"atoms": 40}, training)
    return out


def test_a_run_holds_its_adapter_its_settings_its_numbers_and_the_list_of_them(tmp_path):
    out = written(tmp_path / "run", training=TRAINING)
    assert (
        {name for name in NAMES if (out / name).is_file()}
        == set(NAMES)
        == {entry for entry in manifest.written(out) if not entry.endswith("/")}
    )
    expected = {"command": "prune", "adapter": "runs/teapot", "keep": 40, "from": [1, 2], "training": TRAINING}
    assert (
        yaml.safe_load((out / "config.yaml").read_text())
        == settings_of(out)
        == settings_of(out / "adapter")
        == expected
    )
    assert json.loads((out / "summary.json").read_text()) == {"atoms": 40, "adapter_bytes": 5}


def test_how_an_adapter_was_trained_is_known_whatever_was_made_of_it(tmp_path):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(TRAINING))
    assert training_of(tmp_path) == TRAINING
    pruned = written(tmp_path / "run", training=training_of(tmp_path))
    assert training_of(pruned) == training_of(pruned / "adapter") == TRAINING
    assert training_of(written(tmp_path / "again", training=training_of(pruned))) == TRAINING
    assert training_of(written(tmp_path / "merged", "merge")) is None
    assert training_of(tmp_path / "nothing") is None


def test_only_the_command_that_wrote_a_run_may_replace_it(tmp_path):
    out = written(tmp_path / "run", "merge")
    refuse_taken(out, unless_by="merge")
    for taken, by in ((out, ""), (out, "prune"), (out / "adapter", "merge")):
        with pytest.raises(UserError, match="holds an adapter already: choose another folder"):
            refuse_taken(taken, by)
    refuse_taken(tmp_path / "new")
    (tmp_path / "summary.json").write_text("theirs")
    with pytest.raises(UserError, match=r"summary.json exists already, and is not in the list"):
        refuse_taken(tmp_path)


def test_settings_that_cannot_be_read_are_one_sentence(tmp_path):
    (tmp_path / "config.yaml").write_text("a: [")
    with pytest.raises(UserError, match=r"config.yaml could not be read .*: mend or remove it"):
        settings_of(tmp_path)
