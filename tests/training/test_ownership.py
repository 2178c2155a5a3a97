"""A run removes and replaces what it wrote itself, and nothing else."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from PIL import Image

import atomtune
from atomtune import manifest
from tests.test_files import names

QUICK = {"class_name": "dog", "steps": 2, "checkpoint_every": 1, "num_atoms": 8, "sample_every": 0}
THEIRS = (
    "samples/client.png", "logs/server.log", "logs/customize/notes.txt", "checkpoints/other-model.safetensors",
    "checkpoints/step-by-step.md", "checkpoints/step-000001-best/state.json",
    "adapter/notes.txt", "class_images/holiday.jpg", "chapter.tmp", ".tmprc",
)  # fmt: skip


@pytest.fixture
def out(tmp_path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def run(base, images, out):
    def run(**options):
        return atomtune.customize(images, **{**QUICK, "base": base, "out": out, **options})

    return run


def write(folder: Path, *files: str) -> None:
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("theirs")


def files(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in names(folder) if (folder / name).is_file()}


def test_all_that_a_run_writes_is_listed(run, out):
    run(prior_preservation=True, num_class_images=1, checkpoints_total_limit=1, sample_every=1)
    listed = manifest.written(out) | {manifest.NAME}
    assert listed == {name + "/" if (out / name).is_dir() else name for name in names(out)}
    manifest.clear(out)
    assert names(out) == []


def test_files_of_the_user_survive_a_run_a_refused_one_and_starting_over(run, out):
    write(out, *THEIRS)
    before = files(out)
    for options in ({"optimizer": "Magic"}, {"optimizer": "Magic", "overwrite": True}):
        with pytest.raises(atomtune.UserError, match="there is no optimizer"):
            run(**options)
        assert files(out) == before
    run()
    write(out, "checkpoints/step-000001/notes.txt", "samples/step-000002-best.txt")
    for steps in (3, 2, 3):  # what stayed does not stand in the way of the next start
        run(overwrite=True, steps=steps)
        run(steps=steps)
        for name in (*THEIRS, "checkpoints/step-000001/notes.txt", "samples/step-000002-best.txt"):
            assert (out / name).read_text() == "theirs"
    assert names(out / "checkpoints" / "step-000001") == ["notes.txt"]  # the third checkpoint took its place
    manifest.clear(out)
    assert sorted(files(out)) == sorted([*THEIRS, "checkpoints/step-000001/notes.txt", "samples/step-000002-best.txt"])


@pytest.mark.parametrize(
    "name",
    ["config.yaml", "summary.json", "adapter/README.md", "checkpoints/step-000001/state.json",
     "samples/step-000002-0.png", "class_images/0000.png"],
)  # fmt: skip
def test_a_file_of_the_user_in_the_place_of_one_of_the_run_is_refused(run, out, name):
    write(out, name)
    for overwrite in (False, True):
        with pytest.raises(
            atomtune.UserError, match="exists already, and is not in the list of files that atomtune wrote"
        ):
            run(base="nowhere", overwrite=overwrite)  # before a base is opened
    assert (out / name).read_text() == "theirs"
    assert len(files(out)) == 1


def test_starting_over_with_options_that_are_refused_keeps_the_run_that_was_there(run, out, base, images):
    run()
    before = files(out)
    for wrong in ({"optimizer": "Magic"}, {"base": "nowhere"}, {"images": "nowhere"}):
        options = {"images": images, "base": base, "out": out, "overwrite": True} | wrong
        with pytest.raises(atomtune.UserError):
            atomtune.customize(**{**QUICK, **options})
        assert files(out) == before
    assert run() == json.loads(before["summary.json"])


def test_a_run_of_an_older_version_is_read_but_nothing_of_it_is_removed(run, out):
    summary = run()
    (out / manifest.NAME).unlink()
    before = files(out)
    assert run() == summary
    with pytest.raises(atomtune.UserError, match="a run of an older atomtune, which kept no list of its files"):
        run(overwrite=True)
    assert files(out) == before
    (out / "summary.json").unlink()
    del before["summary.json"]
    with pytest.raises(atomtune.UserError, match="a run of an older atomtune, which kept no list of its files"):
        run()
    assert files(out) == before


def test_a_checkpoint_without_its_seal_is_none(run, out):
    """As a kill leaves it while an old checkpoint is removed."""
    run()
    trained = files(out)["adapter/adapter_model.safetensors"]
    for name in ("summary.json", "adapter/adapter_config.json", "checkpoints/step-000002/state.json"):
        (out / name).unlink()
    run()
    assert files(out)["adapter/adapter_model.safetensors"] == trained


@pytest.mark.parametrize("place", [".", "..", "cat", "cat/1.png"])
def test_an_output_that_contains_the_images_is_refused(base, tmp_path, monkeypatch, place):
    cat = tmp_path / "photos" / "cat"
    cat.mkdir(parents=True)
    Image.new("RGB", (64, 64), "red").save(cat / "1.png")
    monkeypatch.chdir(tmp_path / "photos")
    before = files(tmp_path)
    for images in ("cat", "cat/1.png"):
        with pytest.raises(atomtune.UserError, match=r"contains the input cat|1.png is a file"):
            atomtune.customize(images, **QUICK, base="nowhere", out=place)
    assert files(tmp_path) == before


def test_a_run_does_not_start_from_an_adapter_that_it_would_replace(run, out):
    run()
    before = files(out)
    for start in (out, out / "adapter", out / "checkpoints" / "step-000001" / "adapter"):
        with pytest.raises(atomtune.UserError, match="contains the input"):
            run(init_adapter=start, overwrite=True)
    assert files(out) == before


def test_a_run_through_links_leaves_the_links(run, out, tmp_path):
    disk = tmp_path / "disk"
    (disk / "samples").mkdir(parents=True)
    out.symlink_to(disk)
    (tmp_path / "elsewhere").mkdir()
    (disk / "samples").rmdir()
    (disk / "samples").symlink_to(tmp_path / "elsewhere")
    run()
    assert out.is_symlink() and (disk / "samples").is_symlink()
    assert names(tmp_path / "elsewhere") == ["step-000002-0.png", "step-000002-1.png"]
    run(overwrite=True, steps=1)
    assert names(tmp_path / "elsewhere") == ["step-000001-0.png", "step-000001-1.png"]
    shutil.move(disk / "summary.json", tmp_path / "elsewhere")
    (disk / "summary.json").symlink_to(tmp_path / "elsewhere" / "summary.json")
    with pytest.raises(atomtune.UserError, match=r"summary.json is a link, which atomtune does not remove"):
        run(overwrite=True)
    assert yaml.safe_load((disk / "config.yaml").read_text())["steps"] == 1


def test_an_edit_does_not_replace_a_file_of_the_user(out, tmp_path):
    Image.new("RGB", (64, 64), "red").save(tmp_path / "a.png")
    write(out, "preset.json")
    with pytest.raises(atomtune.UserError, match=r"preset.json exists already"):
        atomtune.edit(tmp_path / "a.png", "a dog", out, base="nowhere")
    with pytest.raises(atomtune.UserError, match="contains the input"):
        atomtune.edit(tmp_path / "a.png", "a dog", tmp_path, base="nowhere")
