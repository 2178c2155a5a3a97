"""Ctrl-C and SIGTERM: the step is finished and saved, what is said continues it, and nothing else changes."""

import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch

from atomtune import sampling
from atomtune.cli import main
from atomtune.shell import command_line
from atomtune.training import encoding, interruption
from atomtune.training.interruption import Interruption
from tests.training.quick import QUICK, state

SIGNALS = [signal.SIGINT, signal.SIGTERM]
RUN = {"steps": 6, "checkpoint_every": 50, "sample_every": 3, "caption_dropout": 0.3, "lr_scheduler": "cosine"}


@pytest.fixture(autouse=True)
def handlers():
    """Handlers as at the start of a process, whoever runs the tests, and the test's own are gone afterwards."""
    before = {number: signal.signal(number, signal.default_int_handler) for number in SIGNALS}
    yield
    assert all(signal.getsignal(number) is signal.default_int_handler for number in SIGNALS)
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def at_step(monkeypatch):
    """Call something in the middle of the nth optimizer step."""

    def at_step(number: int, call) -> None:
        step, left = torch.optim.AdamW.step, [number]

        def stepping(self, closure=None):
            left[0] -= 1
            if left[0] == 0:
                call()
            return step(self, closure)

        monkeypatch.setattr(torch.optim.AdamW, "step", stepping)

    return at_step


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
@pytest.mark.parametrize("step", [2, 3, 6])  # 3 is one with samples, 6 the last
def test_a_signal_ends_the_run_after_the_step_and_what_is_said_continues_to_the_same_bits(
    run, at_step, tmp_path, monkeypatch, number, step
):
    run("whole", **RUN)
    at_step(step, lambda: os.kill(os.getpid(), number))
    with pytest.raises(KeyboardInterrupt) as stopped:
        run(**RUN, overwrite=True)
    out = tmp_path / "run"
    sentence = re.fullmatch(rf"stopped at step {step} of 6: `(.*)` goes on from step {step}\.", str(stopped.value))
    assert sentence
    assert [path.name for path in (out / "checkpoints").iterdir()] == [f"step-{step:06d}"]
    assert not (out / "summary.json").exists()
    monkeypatch.undo()
    main(shlex.split(sentence[1])[1:])
    assert state(out) == state(tmp_path / "whole")


def test_a_second_ctrl_c_stops_at_once(run, at_step, tmp_path, monkeypatch):
    monkeypatch.setattr(interruption, "REPEAT", 0.0)

    def twice():
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)

    at_step(4, twice)
    with pytest.raises(KeyboardInterrupt, match=r"stopped at step 3 of 4: .* goes on from step 2\."):
        run()
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-000002"]


def test_samples_of_which_some_are_missing_are_drawn_again(run, tmp_path, monkeypatch):
    options = {"steps": 4, "sample_every": 2, "sample_prompts": ["a sks dog", "a dog", "the snow"]}
    run("whole", **options)
    save, left = sampling.save_png, [2]

    def saving(*args):
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        save(*args)

    monkeypatch.setattr(sampling, "save_png", saving)
    with pytest.raises(KeyboardInterrupt):
        run(**options)
    assert [file.name for file in (tmp_path / "run" / "samples").iterdir()] == ["step-000002-0.png"]
    monkeypatch.undo()
    run(**options)
    assert state(tmp_path / "run") == state(tmp_path / "whole")


def test_before_training_ctrl_c_just_stops(run, tmp_path, monkeypatch):
    encode = encoding.encode_images
    monkeypatch.setattr(encoding, "encode_images", lambda *args: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt) as stopped:
        run()
    assert str(stopped.value) == ""
    monkeypatch.setattr(encoding, "encode_images", encode)
    assert run()["steps"] == 4


def test_one_signal_that_comes_twice_is_one_and_a_later_one_raises(monkeypatch):
    heard = []
    with Interruption(lambda: heard.append(True)) as asked:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)  # a launcher passes on what the terminal has sent
        assert asked.asked and heard == [True]
        monkeypatch.setattr(interruption, "REPEAT", 0.0)
        time.sleep(0.01)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_a_signal_that_was_switched_off_stays_off():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with Interruption(lambda: None) as asked:
        signal.raise_signal(signal.SIGINT)
        assert not asked.asked
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_outside_the_main_thread_nothing_is_handled():
    handlers = []

    def look():
        with Interruption(lambda: None):
            handlers.extend(signal.getsignal(number) for number in SIGNALS)

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert handlers == [signal.default_int_handler] * 2


@pytest.mark.slow
@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_the_command_line_says_how_to_continue_and_exits_130(base, images, tmp_path, number):
    out = tmp_path / "a run"
    options = {**QUICK, "steps": 200, "sample_every": 1, "report_to": "none", "base": base, "out": out}
    flags = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    process = subprocess.Popen(
        [sys.executable, "-m", "atomtune", "customize", str(images), *flags],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while process.poll() is None and not (out / "samples" / "step-000001-0.png").is_file():
        time.sleep(0.05)
    process.send_signal(number)
    said = process.communicate(timeout=200)[1].splitlines()[-1]
    assert process.returncode == 130, said
    (last,) = [int(path.name[5:]) for path in sorted((out / "checkpoints").iterdir())[-1:]]
    command = command_line("customize", "--config", out / "config.yaml")
    assert said == f"atomtune: stopped at step {last} of 200: `{command}` goes on from step {last}."
