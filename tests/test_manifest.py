"""The list of what was written, and that nothing else is removed or replaced."""

import shutil

import pytest

from atomtune import manifest
from atomtune.errors import UserError
from tests.test_files import names


@pytest.fixture
def folder(tmp_path):
    """Three listed files in folders, one of which was there before, with a file of the user's."""
    (tmp_path / "logs").mkdir()
    files = [tmp_path / name for name in ("config.yaml", "logs/mine.json", "samples/1.png")]
    manifest.record(tmp_path, *files)
    for file in files:
        file.parent.mkdir(exist_ok=True)
        file.write_text("ours")
    return tmp_path


def test_the_list_is_plain_to_read(folder):
    lines = (folder / "atomtune-files.txt").read_text().splitlines()
    assert lines == [manifest.HEAD, "config.yaml", "logs/mine.json", "samples/", "samples/1.png"]


def test_clearing_removes_what_is_listed_and_nothing_else(folder):
    (folder / "samples" / "client.png").write_text("theirs")
    manifest.clear(folder)
    assert names(folder) == ["logs", "samples", "samples/client.png"]
    manifest.clear(folder)
    assert names(folder) == ["logs", "samples", "samples/client.png"]


def test_what_is_gone_is_forgotten(folder):
    (folder / "samples" / "1.png").unlink()
    manifest.record(folder, folder / "summary.json")
    assert manifest.written(folder) == {"config.yaml", "logs/mine.json", "samples/", "summary.json"}


def test_what_is_not_listed_is_not_replaced(folder):
    manifest.refuse_foreign(folder, "config.yaml", "samples/*.png", "summary.json")
    (folder / "samples" / "2.png").touch()
    with pytest.raises(UserError, match=r"2.png exists already, and is not in the list .*atomtune-files.txt"):
        manifest.refuse_foreign(folder, "config.yaml", "samples/*.png")


def test_a_listed_file_that_became_a_link_is_neither_removed_nor_moved(folder, tmp_path_factory):
    disk = tmp_path_factory.mktemp("disk") / "1.png"
    (folder / "samples" / "1.png").rename(disk)
    (folder / "samples" / "1.png").symlink_to(disk)
    with pytest.raises(UserError, match=r"1.png is a link, which atomtune does not remove"):
        manifest.refuse_links(folder)
    manifest.clear(folder)
    assert disk.read_text() == "ours" and (folder / "samples" / "1.png").is_symlink()


def test_what_was_set_aside_comes_back_after_an_error(folder):
    before, listed = names(folder), manifest.written(folder)

    def start_over():
        assert sorted(path.name for path in folder.glob("[!.]*")) == ["logs"]
        manifest.record(folder, folder / "config.yaml", folder / "new" / "file")
        (folder / "config.yaml").write_text("new")
        raise UserError("refused")

    with pytest.raises(UserError, match="refused"), manifest.set_aside(folder):
        start_over()
    assert (names(folder), manifest.written(folder)) == (before, listed)
    assert (folder / "config.yaml").read_text() == "ours"
    with manifest.set_aside(folder):
        pass
    assert names(folder) == ["logs"]


def test_an_interruption_while_files_are_set_aside_loses_none(folder, monkeypatch):
    before, move = names(folder), shutil.move

    def interrupted(file, place):
        if file.name == "config.yaml" and place.parent != folder:
            raise KeyboardInterrupt
        move(file, place)

    monkeypatch.setattr(shutil, "move", interrupted)
    with pytest.raises(KeyboardInterrupt), manifest.set_aside(folder):
        raise AssertionError("not reached")
    assert names(folder) == before


@pytest.mark.parametrize("text", ["shopping", "", f"{manifest.HEAD}\n../outside\n", f"{manifest.HEAD}\n/etc/passwd\n"])
def test_a_list_that_is_not_ours_is_refused(tmp_path, text):
    (tmp_path / manifest.NAME).write_text(text)
    with pytest.raises(UserError, match="is not a list that atomtune wrote"):
        manifest.clear(tmp_path)
    assert names(tmp_path) == [manifest.NAME]
