"""The studio's folders: nothing outside of them is read or written, whatever is asked for."""

import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

from atomtune.errors import UserError
from atomtune.shipped import ADAPTER, IMAGES
from atomtune.workspace import EXAMPLE, SHOWN, Workspace, enlarged

OUTSIDE = [
    "..",
    "../secret",
    "a/../../secret",
    "/etc/passwd",
    ".",
    "",
    " ",
    "a/b",
    "a\\b",
    ".studio",
    "~root",
    "a\0b",
    "x" * 99,
]


@pytest.fixture
def workspace(tmp_path) -> Workspace:
    secret = tmp_path / "secret"
    shutil.copytree(ADAPTER, secret / "adapter")
    (secret / "config.yaml").write_text("images: /etc\nclass_name: x\nout: y\n")
    shutil.copytree(ADAPTER, tmp_path / "runs" / "good" / "adapter")
    return Workspace(tmp_path / "runs")


def test_what_is_there_is_found_and_nothing_else(workspace, tmp_path):
    assert workspace.adapters() == ["good", EXAMPLE] and workspace.run("good") == tmp_path / "runs" / "good"
    for name in [*OUTSIDE, "secret"]:
        with pytest.raises(UserError, match="there is no run"):
            workspace.run(name)
    with pytest.raises(UserError, match="choose one of the list first"):
        workspace.run(None)


def test_edits_and_comparisons_are_listed_once_they_are_finished(workspace):
    assert workspace.edits() == workspace.comparisons() == []
    (workspace.folder / "both").mkdir()
    for file in ("edit.json", "scores.json"):
        for folder in ("good", "both"):
            (workspace.folder / folder / file).write_text("{}")
    assert workspace.edits() == workspace.comparisons() == []
    for file in ("edit.png", "grid.png"):
        for folder in ("good", "both"):
            (workspace.folder / folder / file).touch()
    assert workspace.edits() == ["good"] and sorted(workspace.comparisons()) == ["both", "good"]
    (workspace.folder / "both" / "grid.png").unlink()
    (workspace.folder / "both" / "grid.png").symlink_to(workspace.folder.parent / "secret" / "config.yaml")
    assert workspace.comparisons() == ["good"]


@pytest.mark.parametrize("name", OUTSIDE)
def test_no_name_leads_out(workspace, name):
    before = sorted(workspace.folder.parent.rglob("*"))
    with pytest.raises(UserError, match="a name is a word of letters"):
        workspace.new(name)
    with pytest.raises(UserError, match="a name is a word of letters"):
        workspace.save_preset(name, {})
    with pytest.raises(UserError, match="a name is a word of letters"):
        workspace.save_images(name, [str(IMAGES / "teapot.png")], ["a"])
    assert sorted(workspace.folder.parent.rglob("*")) == before


def test_links_out_are_no_runs(workspace, tmp_path):
    (workspace.folder / "link").symlink_to(tmp_path / "secret")
    (workspace.folder / "inner").mkdir()
    (workspace.folder / "inner" / "adapter").symlink_to(tmp_path / "secret" / "adapter")
    shutil.copytree(workspace.folder / "good", workspace.folder / "weights")
    weights = workspace.folder / "weights" / "adapter" / "adapter_model.safetensors"
    weights.unlink()
    weights.symlink_to(tmp_path / "secret" / "adapter" / "adapter_model.safetensors")
    (workspace.folder / "own").symlink_to(workspace.folder / "good")  # a link that stays inside
    assert set(workspace.adapters()) == {"good", "own", EXAMPLE}
    for name in ("presets", "images"):
        (workspace.folder / name).symlink_to(tmp_path / "secret")
    with pytest.raises(UserError, match="leads out of the workspace by a link"):
        workspace.save_preset("calmer", {})
    with pytest.raises(UserError, match="leads out of the workspace by a link"):
        workspace.save_images("new", [str(IMAGES / "teapot.png")], ["a"])
    assert sorted(path.name for path in (tmp_path / "secret").iterdir()) == ["adapter", "config.yaml"]


def test_a_run_trained_on_images_outside_does_not_lead_there(workspace):
    folder = workspace.folder / "crafted"
    shutil.copytree(ADAPTER, folder / "adapter")
    (folder / "config.yaml").write_text("images: /etc\nclass_name: x\nout: y\n")
    assert not workspace.own_images("crafted") and workspace.own_images("good")
    with pytest.raises(UserError, match=r"trained on images outside the workspace.*type `.*inspect x`"):
        workspace.refuse_outside("crafted", ["inspect", "x"])
    (folder / "config.yaml").write_text(f"images: {workspace.folder}/../secret\nclass_name: x\nout: y\n")
    assert not workspace.own_images("crafted")
    (folder / "config.yaml").write_text(f"images: {workspace.folder}/images/a\nclass_name: x\nout: y\n")
    assert workspace.own_images("crafted")


def test_uploads_are_images_of_the_cache_alone(workspace, tmp_path):
    with pytest.raises(UserError, match="was not uploaded here"):
        workspace.upload("/etc/passwd")
    workspace.cache.mkdir(parents=True)
    (workspace.cache / "link.png").symlink_to("/etc/passwd")
    with pytest.raises(UserError, match="was not uploaded here"):
        workspace.upload(str(workspace.cache / "link.png"))
    (workspace.cache / "text.png").write_text("no image")
    with pytest.raises(UserError, match=r"^text.png is not an image that can be read"):
        workspace.upload(str(workspace.cache / "text.png"))
    large = workspace.cache / "large.png"
    with large.open("wb") as file:
        os.truncate(file.fileno(), 20_000_001)
    with pytest.raises(UserError, match=r"large\.png is larger than 20 MB"):
        workspace.upload(str(large))
    Image.new("1", (20_000, 20_000)).save(workspace.cache / "bomb.png")
    with pytest.raises(UserError, match=r"bomb\.png is too large"):
        workspace.upload(str(workspace.cache / "bomb.png"))


def test_images_are_kept_with_their_captions(workspace):
    folder = workspace.save_images("pot", [str(IMAGES / "teapot.png")], [" a sks teapot "])
    assert sorted(path.name for path in folder.iterdir()) == ["00.png", "00.txt"]
    assert (folder / "00.txt").read_text() == "a sks teapot"
    file = workspace.save_preset("calmer", {"density": {"L0": 0.01}})
    assert json.loads(file.read_text()) == {"density": {"L0": 0.01}} and file.parent == workspace.folder / "presets"


def test_a_preset_is_not_written_over_another(workspace):
    file = workspace.save_preset("calmer", {"density": {"L0": 0.01}})
    assert workspace.save_preset("calmer", {"density": {"L0": 0.01}}) == file  # the same again
    with pytest.raises(UserError, match="there is a preset 'calmer' already: choose another name"):
        workspace.save_preset("calmer", {})
    assert json.loads(file.read_text()) == {"density": {"L0": 0.01}}


def test_an_image_that_ships_is_shown_from_inside_the_workspace(workspace):
    copy = workspace.copy(IMAGES / "teapot.png")
    assert Path(copy).read_bytes() == (IMAGES / "teapot.png").read_bytes()
    assert Path(copy).is_relative_to(workspace.cache) and workspace.copy(IMAGES / "teapot.png") == copy


def test_a_taken_name_and_a_missing_run_are_sentences(workspace, tmp_path):
    with pytest.raises(UserError, match="there is a run 'good' already"):
        workspace.new("good")
    with pytest.raises(UserError, match="there is no adapter in"):
        Workspace(tmp_path / "runs", [tmp_path / "nowhere"])
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be a folder"):
        Workspace(tmp_path / "file")


def test_a_run_of_the_command_line_is_shown_too(workspace, tmp_path):
    assert "secret" in Workspace(tmp_path / "runs", [Path(tmp_path / "secret")]).adapters()


def test_a_picture_is_whole_whoever_writes_it_meanwhile(workspace):
    """Two write it, again and again, while it is read; a file that is removed as too old is written anew."""
    noise = Image.effect_noise((64, 64), 90).convert("RGB")
    file, writing = Path(workspace.picture(noise)), True
    whole = file.read_bytes()

    def write() -> None:
        while writing:
            assert workspace.picture(noise) == str(file)

    with ThreadPoolExecutor(2) as pool:
        done = [pool.submit(write) for _ in range(2)]
        found = {file.read_bytes() for _ in range(2000)}
        file.unlink()
        writing = False
    assert found == {whole} and not [each.result() for each in done if each.result()]
    assert Image.open(workspace.picture(noise)).tobytes() == enlarged(noise).tobytes()
    assert enlarged(noise).size == (SHOWN, SHOWN) and enlarged(Image.new("RGB", (300, 200))).size == (300, 200)
