"""Whole or not at all, and nothing of the user's taken away."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from atomtune.errors import UserError
from atomtune.files import (
    atomic_file,
    atomic_folder,
    refuse_output,
    remove,
    remove_leftovers,
    temporary_beside,
    write_once,
    write_text,
)


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def save(folder: Path, text: str = "new") -> None:
    """As an adapter is saved: the seal and what it belongs to."""
    with atomic_folder(folder, seal="config") as temporary:
        for name in ("config", "weights"):
            (temporary / name).write_text(text)


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


def test_what_is_there_is_not_written_again(tmp_path):
    file = write_once(tmp_path / "cache", "a.txt", b"whole")
    os.utime(file, (0, 0))
    file.chmod(0o444)
    before = file.stat()
    assert write_once(tmp_path / "cache", "a.txt", b"whole") == file and file.read_bytes() == b"whole"
    assert file.stat().st_ino == before.st_ino and file.stat().st_mtime > before.st_mtime
    assert write_once(tmp_path / "cache", "a.txt", b"other") != file
    file.unlink()  # as too old
    assert write_once(tmp_path / "cache", "a.txt", b"whole").read_bytes() == b"whole"


def test_a_folder_that_is_there_keeps_its_other_files(tmp_path):
    (tmp_path / "run" / "photos").mkdir(parents=True)
    for name in ("train.py", "photos/cat.jpg", "weights"):
        (tmp_path / "run" / name).write_text("old")
    save(tmp_path / "run")
    assert names(tmp_path / "run") == ["config", "photos", "photos/cat.jpg", "train.py", "weights"]
    assert (tmp_path / "run" / "weights").read_text() == "new"


def test_a_kill_between_two_files_leaves_no_mixture_that_opens(tmp_path, monkeypatch):
    for name in ("config", "weights"):
        (tmp_path / name).write_text("old")
    replace, replaced = os.replace, []

    def dying(source, place):
        if replaced:
            raise KeyboardInterrupt  # as good as a kill: what has happened by now is on disk
        replaced.append(place)
        replace(source, place)

    monkeypatch.setattr(os, "replace", dying)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path)
    assert names(tmp_path) == ["weights"]


def test_a_folder_in_the_place_of_a_file_stops_before_anything_is_replaced(tmp_path):
    (tmp_path / "run" / "weights").mkdir(parents=True)
    (tmp_path / "run" / "config").write_text("old")
    with pytest.raises(UserError, match="Is a directory"):
        save(tmp_path / "run")
    assert (tmp_path / "run" / "config").read_text() == "old"


def test_only_our_own_leftovers_are_removed(tmp_path):
    """Of a process that is not there any more; not the user's, and not those of a process that writes now."""
    program = "import sys, os; from atomtune.files import atomic_folder\n"
    program += "with atomic_folder(sys.argv[1]): os._exit(9)"
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "run.v2")], check=False)
    assert len(list(tmp_path.iterdir())) == 1
    mine = ["chapter.tmp", ".tmprc", ".atomtune-notes", ".atomtune-00000000-1-0a0a0a0a"]  # the last of another machine
    for name in mine:
        (tmp_path / name).touch()
    with temporary_beside(tmp_path / "a.png") as writing:
        writing.touch()
        of_another = tmp_path / writing.name.replace(f"-{os.getpid()}-", f"-{os.getppid()}-")
        of_another.touch()
        remove_leftovers(tmp_path)
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*mine, writing.name, of_another.name])
    remove_leftovers(tmp_path / "nowhere")


def test_two_writers_of_one_file_do_not_touch_each_others_temporaries(tmp_path):
    with atomic_file(tmp_path / "a.png") as one, atomic_file(tmp_path / "a.png") as other:
        one.write_text("one")
        other.write_text("other")
        assert one != other and one.suffix == ".png"
    assert names(tmp_path) == ["a.png"]
    assert (tmp_path / "a.png").read_text() == "one"  # which was the last to be put in its place


def test_names_as_long_as_names_can_be(tmp_path):
    write_text(tmp_path / ("a" * 251 + ".txt"), "text")
    with atomic_folder(tmp_path / ("b" * 255)):
        pass
    assert len(names(tmp_path)) == 2


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o002])
def test_modes_follow_the_umask(tmp_path, umask):
    before = os.umask(umask)
    try:
        write_text(tmp_path / "file", "text")
        with atomic_folder(tmp_path / "folder") as temporary:
            (temporary / "private").touch(mode=0o600)
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o666 & ~umask
    assert (tmp_path / "folder" / "private").stat().st_mode & 0o777 == 0o666 & ~umask
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o777 & ~umask


def test_a_link_is_written_through(tmp_path):
    (tmp_path / "disk" / "folder").mkdir(parents=True)
    (tmp_path / "disk" / "file").write_text("old")
    for name in ("file", "folder"):
        (tmp_path / name).symlink_to(tmp_path / "disk" / name)
    (tmp_path / "folder" / "weights").symlink_to(tmp_path / "disk" / "file")
    write_text(tmp_path / "file", "new")
    assert (tmp_path / "disk" / "file").read_text() == "new"
    save(tmp_path / "folder", "newer")
    assert (tmp_path / "disk" / "file").read_text() == "newer"
    assert all((tmp_path / name).is_symlink() for name in ("file", "folder", "folder/weights"))
    assert names(tmp_path / "disk") == ["file", "folder", "folder/config", "folder/weights"]


def test_a_link_to_nothing_is_refused(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "unmounted" / "disk")
    for write in (lambda path: write_text(path, "text"), lambda path: atomic_folder(path).__enter__(), refuse_output):
        for path in (tmp_path / "link", tmp_path / "link" / "run"):
            with pytest.raises(UserError, match=r"is a link to .*disk, which does not exist"):
                write(path)
    assert names(tmp_path) == ["link"] and (tmp_path / "link").is_symlink()


def test_dots_and_slashes_at_the_end_are_places_too(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    monkeypatch.chdir(tmp_path / "a")
    for out in (".", "../a/", "b/", "../a/b/../c"):
        refuse_output(out)
        with atomic_folder(out) as temporary:
            (temporary / "file").write_text(out)
        assert (Path(out) / "file").read_text() == out
    assert names(tmp_path) == ["a", "a/b", "a/b/file", "a/c", "a/c/file", "a/file"]


def test_an_output_that_contains_an_input_is_refused(tmp_path, monkeypatch):
    (tmp_path / "photos" / "cat").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "photos")
    monkeypatch.chdir(tmp_path / "photos")
    cat = tmp_path / "photos" / "cat"
    for out in (cat, tmp_path / "photos", tmp_path, tmp_path / "link", ".", "..", "cat/", "cat/../../photos"):
        with pytest.raises(UserError, match=r"the output .* contains the input .*cat: choose another folder"):
            refuse_output(out, cat)
    for out in (tmp_path / "runs", cat / "run", tmp_path / "photos" / "cats"):
        refuse_output(out, cat, "someone/base-on-the-hub")
    with pytest.raises(UserError, match="contains the input"):
        refuse_output(tmp_path / "photos", tmp_path / "link" / "cat")


def test_an_output_that_is_a_file_or_in_one_is_refused(tmp_path):
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(UserError, match=r"cannot be a folder, because .*file is a file"):
            refuse_output(out)


def test_removing_leaves_links_and_folders_that_hold_more(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    for name in ("a/b/ours", "a/theirs"):
        (tmp_path / name).touch()
    (tmp_path / "a" / "link").symlink_to("theirs")
    remove([tmp_path / "a/b/ours", tmp_path / "a/link", tmp_path / "gone"], [tmp_path / "a", tmp_path / "a" / "b"])
    assert names(tmp_path) == ["a", "a/link", "a/theirs"]
