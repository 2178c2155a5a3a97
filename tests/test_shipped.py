import json

import pytest

import atomtune
from atomtune import cli


def test_the_examples_are_images_with_captions_and_prompts(tmp_path):
    folder = atomtune.example_images(tmp_path / "photos")
    for name in ("teapot", "octopus", "openmoji"):
        lines = (folder / name / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
        assert {json.loads(line)["file_name"] for line in lines} == {f.name for f in (folder / name).glob("*.png")}
    assert len((folder / "prompts.txt").read_text(encoding="utf-8").splitlines()) == 8
    assert (folder / "teapot.png").is_file()
    assert "CC BY-SA 4.0" in (folder / "LICENSES.md").read_text(encoding="utf-8")


def test_laying_out_examples_replaces_nothing(tmp_path):
    (tmp_path / "teapot").mkdir()
    (tmp_path / "teapot" / "9.png").write_bytes(b"mine")
    atomtune.example_images(tmp_path)
    atomtune.example_images(tmp_path)  # once more: all is there already
    assert (tmp_path / "teapot" / "9.png").read_bytes() == b"mine"

    other = tmp_path / "other"
    (other / "teapot").mkdir(parents=True)
    (other / "teapot" / "1.png").write_bytes(b"mine")
    with pytest.raises(atomtune.UserError, match=r"teapot/1\.png is there already and is another file"):
        atomtune.example_images(other)
    assert [file.name for file in other.rglob("*") if file.is_file()] == ["1.png"]


@pytest.mark.parametrize("name", ["teapot", "teapot/1.png", "teapot.png"])
def test_examples_are_not_written_through_a_link_to_nowhere_nor_half_beside_what_is_in_the_way(tmp_path, name):
    for number, put in enumerate((lambda there: there.symlink_to(tmp_path / "nowhere"), lambda there: there.touch())):
        taken = tmp_path / str(number) / name
        taken.parent.mkdir(parents=True)
        put(taken)
        with pytest.raises(atomtune.UserError, match=f"{name} is there already"):
            atomtune.example_images(tmp_path / str(number))
        assert [file for file in (tmp_path / str(number)).rglob("*") if not file.is_dir()] == [taken]
    assert not (tmp_path / "nowhere").exists()


def test_what_cannot_be_the_folder_of_the_examples_is_refused(tmp_path):
    (tmp_path / "photos").write_text("")
    with pytest.raises(atomtune.UserError, match="is a file: choose another folder"):
        atomtune.example_images(tmp_path / "photos")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(atomtune.UserError, match=r"is a link to .*nowhere, which does not exist"):
        atomtune.example_images(tmp_path / "link")


def test_the_command_says_what_it_laid_out_and_what_to_type_next(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    cli.main(["examples", "my photos"])
    *entries, licenses, learn = capsys.readouterr().out.splitlines()
    assert all((tmp_path / entry).exists() for entry in entries)
    assert (tmp_path / licenses.split(": ")[1]).is_file()
    assert learn.endswith("customize 'my photos/teapot' --class-name teapot --out runs/teapot")
