"""Whole or not at all."""

import pytest

from atomtune.errors import UserError
from atomtune.files import atomic_file, atomic_folder, remove_folder, remove_leftovers


def test_a_folder_takes_its_place_at_the_end(tmp_path):
    for text in ("old", "new"):
        with atomic_folder(tmp_path / "a" / "run") as temporary:
            (temporary / "file").write_text(text)
        assert (tmp_path / "a" / "run" / "file").read_text() == text
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["run"]


def test_nothing_half_written_is_left(tmp_path):
    (tmp_path / "file").write_text("old")
    for writing in (atomic_folder(tmp_path / "run"), atomic_file(tmp_path / "file")):
        with pytest.raises(UserError, match=r"could not write .*: make room or choose another folder"), writing:
            raise OSError(28, "No space left on device")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "old"


def test_leftovers_of_a_kill_are_removed(tmp_path):
    (tmp_path / "run.tmp").mkdir()
    (tmp_path / ".tmpfile.png").touch()
    (tmp_path / "kept").touch()
    remove_leftovers(tmp_path)
    remove_folder(tmp_path / "nowhere")
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
