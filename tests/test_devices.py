"""Which device and which precision a base gets."""

import subprocess
import sys
from collections import namedtuple

import psutil
import pytest
import torch

from atomtune.bases import load_base, precision_and_device
from atomtune.devices import idle_threads, own_threads, pick_device, pick_dtype, use_idle_cores, useful_threads
from atomtune.errors import UserError
from tests.tiny_pixart import save_tiny_pixart

CPU, MPS, XPU = (torch.device(name) for name in ("cpu", "mps", "xpu"))


def test_auto_is_what_accelerate_picks_and_a_cpu_when_it_is_told_so(monkeypatch):
    assert pick_device("cpu") == pick_device(CPU) == CPU
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    assert pick_device("auto") == pick_device() == CPU


@pytest.mark.parametrize("name", ["banana", "cuda:4096", "cuda:x"])
def test_a_device_that_is_not_there_is_a_sentence(name):
    with pytest.raises(UserError, match=f"there is no device '{name}' here: expected auto"):
        pick_device(name)


def test_nothing_is_computed_on_meta():
    with pytest.raises(UserError, match="the device 'meta' computes nothing"):
        pick_device("meta")


def test_the_device_decides_the_precision_unless_it_is_named(monkeypatch):
    assert pick_dtype("auto", CPU) == pick_dtype(None, CPU) == torch.float32
    assert pick_dtype("auto", XPU) == torch.bfloat16
    for newer, expected in ((True, torch.bfloat16), (False, torch.float16)):
        monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda *_, newer=newer: newer)
        assert pick_dtype("auto", MPS) == expected
    assert pick_dtype("float16", XPU) == pick_dtype(torch.float16, XPU) == torch.float16
    with pytest.raises(UserError, match="dtype must be auto, float32, float16, bfloat16, got 'int8'"):
        pick_dtype("int8", CPU)


def test_a_base_is_opened_where_and_as_it_is_asked_for(tmp_path):
    base = save_tiny_pixart(tmp_path / "base")
    assert precision_and_device(load_base(base)) == {"dtype": "float32", "device": "cpu"}
    for dtype in ("bfloat16", torch.bfloat16):
        assert precision_and_device(load_base(base, dtype, "cpu")) == {"dtype": "bfloat16", "device": "cpu"}
    with pytest.raises(UserError, match="there is no device 'banana'"):
        load_base(tmp_path / "nowhere", device="banana")  # said before anything is opened


@pytest.fixture
def four_threads(monkeypatch):
    """PyTorch with four threads, whatever the environment says; they are those of before at the end."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    with own_threads():
        torch.set_num_threads(4)
        yield


LARGE = torch.nn.Linear(10_000, 1_000)


def measured(monkeypatch, **shares: float) -> int:
    """`idle_threads` of a large model where the cores spend these percents of their time."""
    times = {"user": 0.0, "idle": 0.0, "nice": 0.0, "iowait": 0.0} | shares
    spent = namedtuple("spent", times)(**times)
    monkeypatch.setattr(psutil, "cpu_times_percent", lambda interval: spent)
    return idle_threads(LARGE)


@pytest.mark.usefixtures("four_threads")
def test_threads_are_as_many_as_cores_do_nothing(monkeypatch):
    assert measured(monkeypatch, idle=100.0) == 4
    assert measured(monkeypatch, idle=93.0, user=7.0) == 4
    assert measured(monkeypatch, idle=60.0) == 4  # what psutil says of .3 s of two idle cores
    assert measured(monkeypatch, idle=50.0, user=50.0) == 2
    assert measured(monkeypatch, idle=0.0, user=100.0) == 1
    assert measured(monkeypatch, idle=0.0, nice=100.0) == 4
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert measured(monkeypatch, user=100.0) == 4


@pytest.mark.usefixtures("four_threads")
def test_a_core_is_left_to_a_browser(monkeypatch):
    for idle, threads in ((100.0, 3), (50.0, 1), (0.0, 1)):
        torch.set_num_threads(4)
        measured(monkeypatch, idle=idle, user=100.0 - idle)
        use_idle_cores(LARGE, but=1)
        assert torch.get_num_threads() == threads
    torch.set_num_threads(4)
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    use_idle_cores(LARGE, but=1)
    assert torch.get_num_threads() == 4


@pytest.mark.parametrize("width, threads", [(10, 1), (1000, 3), (3162, 5), (10_000, 10), (100_000, 41)])
def test_a_small_model_has_few_threads(width, threads):
    """1 + 4 ∛(parameters / 10 million)."""
    with torch.device("meta"):
        assert useful_threads(torch.nn.Linear(width, width, bias=False)) == threads


@pytest.mark.usefixtures("four_threads")
def test_idle_cores_of_no_use_stay_idle(monkeypatch):
    measured(monkeypatch, idle=100.0)
    use_idle_cores(torch.nn.Linear(1000, 1000).to("meta"))
    assert torch.get_num_threads() == 4  # on an accelerator the CPU has little to do
    use_idle_cores(torch.nn.Linear(1000, 1000))
    assert torch.get_num_threads() == 3


@pytest.mark.usefixtures("four_threads")
def test_threads_of_a_block_end_with_it(monkeypatch):
    measured(monkeypatch, idle=25.0, user=75.0)
    with own_threads():
        use_idle_cores(LARGE)
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 4


@pytest.mark.usefixtures("four_threads")
def test_a_core_that_works_is_counted(monkeypatch):
    """A real process beside this one; other work on this machine only makes the number smaller."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: psutil.cpu_count())
    work = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        assert idle_threads(LARGE) <= max(1, (psutil.cpu_count() or 1) - 1)
    finally:
        work.kill()
        work.wait()
