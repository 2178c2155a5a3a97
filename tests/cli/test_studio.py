"""`atomtune studio` says in one sentence why it cannot open. What it does when it opens is in tests/studio."""

import socket

import pytest

from atomtune.cli import main
from atomtune.cli import studio as command


def said(capsys, *words: object) -> str:
    with pytest.raises(SystemExit) as stop:
        main(["studio", *map(str, words)])
    assert stop.value.code == 2
    return capsys.readouterr().err


def test_a_port_that_is_taken_or_impossible(capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"port {port} cannot be used" in said(capsys, "--port", port)
    assert "--port must be from 1 to 65535, got 0" in said(capsys, "--port", 0)


def test_without_the_extra(capsys, monkeypatch):
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    assert "pip install 'atomtune[studio]'" in said(capsys, "--port", 65000)


def test_a_run_that_is_not_there(capsys, tmp_path):
    assert "there is no adapter in" in said(capsys, tmp_path / "nowhere", "--workspace", tmp_path, "--port", 65001)
