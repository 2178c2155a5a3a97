"""A run is a run: every folder that a command writes has one layout, and every command takes every one of them."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from atomtune import manifest
from atomtune.cli import main
from atomtune.storage.runs import NAMES
from tests.cli.test_cli import said

FEW = ("--steps", 1)
LEARN = ("--class-name", "dog", *FEW, "--num-atoms", 8, "--density", 0.5, "--report-to", "none", "--base")
FOLDERS = ("customize", "prune", "prune and train", "merge", "distill", "edit")
UMASK = 0o027


def call(*words: object) -> None:
    main([str(word) for word in words])


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    for name in ("a", "b"):
        Image.fromarray(random.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(folder / f"{name}.png")
    return folder


@pytest.fixture(scope="module")
def folders(base, images, tmp_path_factory) -> dict[str, Path]:
    """What each command writes, with an unusual umask."""
    place, before = tmp_path_factory.mktemp("runs"), os.umask(UMASK)
    try:
        one = place / "customize"
        call("customize", images, *LEARN, base, "--out", one)
        call("customize", images, *LEARN, base, "--token", "ohwx", "--out", place / "other")
        call("customize", images, *LEARN, base, "--method", "lora", "--rank", 2, "--out", place / "lora")
        call("prune", one, "--keep", 6, "--out", place / "prune")
        call("prune", one, "--keep", 6, "--finetune-steps", 1, "--out", place / "prune and train")
        call("merge", one, place / "other", "--out", place / "merge")
        few = ("--num-atoms", 4, "--density", 0.5, *FEW, "--tokens", 60, "--num", 1, "--sampling-steps", 1)
        call("distill", place / "lora", *few, "--out", place / "distill")
        call("edit", images / "a.png", "--prompt", "a cat", *FEW, "--num", 1, "--base", base, "--out", place / "edit")
    finally:
        os.umask(before)
    return {name: place / name for name in FOLDERS}


@pytest.mark.parametrize("name", FOLDERS)
def test_every_command_writes_the_same_names_and_lists_them(folders, name):
    out = folders[name]
    assert [file for file in NAMES if not (out / file).is_file()] == []
    assert {*NAMES} <= manifest.written(out)
    assert json.loads((out / "summary.json").read_text())["method"] == "atoms"
    settings = yaml.safe_load((out / "config.yaml").read_text())
    assert settings["out"] == str(out)
    assert settings.get("command", "customize") == (name if name in ("prune", "merge", "distill") else "customize")


@pytest.mark.parametrize("name", FOLDERS)
def test_the_modes_of_files_follow_the_umask(folders, name):
    for path in folders[name].rglob("*"):
        assert path.stat().st_mode & 0o777 == (0o777 if path.is_dir() else 0o666) & ~UMASK, path


COMMANDS = {
    "generate": ["generate", "{run}", "--prompt", "x", *FEW, "--out", "{out}/images"],
    "a preset": ["generate", "{run}", "--prompt", "x", *FEW, "--preset", "{out}/preset.json", "--out", "{out}/images"],
    "inspect": [
        "inspect", "{run}", *FEW, "--top", 1, "--naming-prompts", 2, "--prompts", "{out}/p.txt", "--out", "{out}/p.html"
    ],
    "prune": ["prune", "{run}", "--keep", 2, "--out", "{out}/pruned"],
    "merge": ["merge", "{run}", "{other}", "--out", "{out}/merged"],
    "report": ["merge", "{other}", "{run}", "--report", *FEW, "--num", 1],
    "train on": ["customize", "{images}", *LEARN, "{base}", "--init-adapter", "{run}", "--out", "{out}/on"],
}  # fmt: skip


@pytest.mark.parametrize("name", FOLDERS)
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_takes_the_folder_of_every_command(folders, images, base, tmp_path, name, command):
    (tmp_path / "p.txt").write_text("a sks dog")
    (tmp_path / "preset.json").write_text('{"density": {"L0": 0.5}}')
    places = {"run": folders[name], "other": folders["customize"], "out": tmp_path, "images": images, "base": base}
    call(*(str(word).format(**places) for word in COMMANDS[command]))


@pytest.mark.parametrize("name", ["prune", "distill"])
def test_a_pruned_or_distilled_run_still_knows_its_images(folders, tmp_path, capsys, name):
    call("prune", folders[name], "--keep", 2, "--by", "gradient", "--finetune-steps", 1, "--out", tmp_path / "less")
    assert "Kept 2 of" in capsys.readouterr().out
    call("prune", tmp_path / "less", "--keep", 1, "--by", "gradient", "--out", tmp_path / "least")


@pytest.mark.parametrize("name", FOLDERS)
def test_the_settings_of_a_run_start_no_training_that_damages_it(folders, capsys, name):
    before = {file: file.read_bytes() for file in sorted(folders[name].rglob("*")) if file.is_file()}
    command = ["customize", "--config", folders[name] / "config.yaml"]
    if name in ("prune", "merge", "distill"):
        expected = f"holds what `atomtune {name}` was given, and no settings of a training: to train"
        assert expected in said(capsys, *command)
    else:
        call(*command)  # finished: it trains nothing
    assert {file: file.read_bytes() for file in sorted(folders[name].rglob("*")) if file.is_file()} == before


@pytest.mark.parametrize("name", ["prune", "merge", "distill"])
def test_a_run_of_another_command_is_not_trained_into(folders, images, base, capsys, name):
    sentence = said(capsys, "customize", images, *LEARN, base, "--out", folders[name])
    assert f"holds what `atomtune {name}` wrote: train in another folder, with --init-adapter" in sentence


def test_merging_again_replaces_what_merge_wrote_and_nothing_else(folders, tmp_path, capsys):
    both, out = (folders["customize"], folders["distill"]), tmp_path / "merged"
    call("merge", *both, "--out", out)
    call("merge", *both, "--weights", "1,0.5", "--out", out)
    assert yaml.safe_load((out / "config.yaml").read_text())["weights"] == "1,0.5"
    assert "holds an adapter already" in said(capsys, "prune", both[0], "--keep", 2, "--out", out)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "summary.json").write_text("theirs")
    assert "is not in the list of files" in said(capsys, "merge", *both, "--out", tmp_path / "mine")


def test_the_report_fits_a_terminal_of_80_columns_and_ends_with_what_to_do(folders, capsys):
    call("merge", folders["customize"], folders["distill"], "--report", *FEW, "--num", 1)
    table, verdict = capsys.readouterr().out.split("in brackets")
    assert max(len(line) for line in table.splitlines() if not line.startswith(("A:", "B:"))) <= 80
    assert "…" not in table
    assert "merge" in verdict.splitlines()[-1] and "--out runs/merged" in verdict.splitlines()[-1]


def test_prune_of_a_merged_run_says_why_its_images_are_not_known(folders, tmp_path, capsys):
    merged = folders["merge"]
    for options in ((), ("--finetune-steps", 1, "--keep", 3), ("--by", "gradient", "--keep", 3)):
        text = said(capsys, "prune", merged, *options, "--out", tmp_path / "small")
        assert f"{merged} is merged from several adapters" in text
    call("prune", merged, "--keep", 3, "--out", tmp_path / "small")


def test_prune_says_how_much_of_the_likeness_is_left(folders, tmp_path, capsys):
    """Elsewhere than on moji by the loss. A run of one step gains next to nothing, and that is said too."""
    call("prune", folders["customize"], "--keep", 15, "--out", tmp_path / "small")
    printed = capsys.readouterr().out
    summary = json.loads((tmp_path / "small" / "summary.json").read_text())
    if summary["likeness"] is None:
        assert "was not measured, because the whole adapter is hardly nearer" in printed
    else:
        assert "of the likeness is left" in printed
