import os
import shlex
import subprocess
import sys
from pathlib import Path

from atomtune.shell import command_line

BIN = Path(sys.executable).parent


def test_a_printed_command_runs_in_the_shell_that_it_is_printed_in(tmp_path, monkeypatch):
    for path, folder in (
        (os.defpath, tmp_path),
        (os.defpath, BIN.parent),
        (f"{BIN}{os.pathsep}{os.defpath}", tmp_path),
    ):
        monkeypatch.setenv("PATH", path)
        monkeypatch.chdir(folder)
        shown = subprocess.run(command_line("--help"), shell=True, capture_output=True, text=True, check=True).stdout
        assert "customize" in shown


def test_a_printed_command_is_short_where_the_shell_knows_the_program(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", f"{BIN}{os.pathsep}{os.defpath}")
    assert command_line("inspect", "a b") == "atomtune inspect 'a b'"
    monkeypatch.setenv("PATH", os.defpath)
    monkeypatch.chdir(BIN.parent)
    assert command_line("inspect", "a") == "bin/atomtune inspect a"


def test_without_a_script_the_module_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", os.defpath)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert shlex.split(command_line("demo")) == [str(tmp_path / "python"), "-m", "atomtune", "demo"]
