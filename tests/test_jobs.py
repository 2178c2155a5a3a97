"""A queue: one job at a time, each a process of its own, which outlives who started it."""

import json
import os
import platform
import re
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from atomtune import jobs
from atomtune.errors import UserError
from atomtune.jobs import Job, Queue, overview
from atomtune.shipped import ADAPTER


def until(queue: Queue, state: str, seconds: float = 300) -> list[Job]:
    end = time.monotonic() + seconds
    while any(job.state != state for job in queue.jobs()):
        assert time.monotonic() < end, list(map(str, queue.jobs()))
        queue.advance()
        time.sleep(0.1)
    return queue.jobs()


def test_jobs_run_one_after_the_other(tmp_path):
    queue = Queue(tmp_path / "jobs")
    first = queue.add(["recipes"], "runs/a")
    second = queue.add(["recipes", "nothing"], "runs/b")
    assert [job.state for job in queue.jobs()] == ["queued", "queued"] and (first.number, second.number) == (1, 2)
    assert first.command.endswith("atomtune recipes")
    queue.advance()
    queue.advance()
    assert [job.state for job in queue.jobs()] == ["running", "queued"]
    with pytest.raises(UserError, match="b is queued already: wait for it, or stop it"):
        queue.add(["recipes"], "runs/b")
    end = time.monotonic() + 300
    while queue.jobs()[1].state in ("queued", "running"):
        assert time.monotonic() < end
        queue.advance()
        time.sleep(0.1)
    done, failed = queue.jobs()
    assert done.state == "finished" and failed.state == "failed"
    assert failed.message.startswith("there is no recipe 'nothing'")  # the sentence of the command
    with pytest.raises(UserError, match="job 1 neither waits nor runs"):
        queue.stop(1)


def test_a_run_that_has_stopped_may_go_on_though_its_process_is_still_there(tmp_path):
    """After the journal's last line a process needs a second to end. It is no run that goes on from an old journal,
    which begins its own some seconds after its process."""
    queue, out = Queue(tmp_path / "jobs"), tmp_path / "runs" / "long"
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    born = psutil.Process(process.pid).create_time()
    (tmp_path / "jobs").mkdir()
    entry = {"words": ["customize"], "out": str(out), "pid": process.pid, "born": born}
    (tmp_path / "jobs" / "0001-long.started.json").write_text(json.dumps(entry))
    journal = out / "logs" / "journal.jsonl"
    journal.parent.mkdir(parents=True)
    lines = [
        {"pid": process.pid, "born": born, "host": platform.node(), "steps": 4},
        {"step": 2, "loss": 1.0, "seconds": 1},
    ]
    try:
        journal.write_text("".join(json.dumps(line) + "\n" for line in [*lines, {"ended": True}]))
        os.utime(journal, (born - 60, born - 60))
        with pytest.raises(UserError, match="long is running already"):
            queue.add(["customize"], out)
        assert overview(queue, {"long": out}) == [("long", "customize", "running")]
        os.utime(journal)
        assert overview(queue, {"long": out}) == [("long", "customize", "stopped at step 2 of 4")]
        assert queue.add(["customize"], out).number == 2
        queue.advance()
        assert [job.state for job in queue.jobs()] == ["running", "queued"]  # not two at once
    finally:
        process.communicate(b"\n")


def test_a_job_runs_until_its_exit_code_is_known(tmp_path):
    """Never "ended" between its end and the moment when the thread that waits for it has written its code."""
    queue, seen = Queue(tmp_path / "jobs"), set()
    queue.add(["recipes", "nothing"], "runs/a")
    queue.advance()
    end = time.monotonic() + 300
    while "failed" not in seen:
        assert time.monotonic() < end
        seen |= {job.state for job in queue.jobs()}
    assert seen == {"running", "failed"}


def test_a_job_that_waits_is_taken_off(tmp_path):
    queue = Queue(tmp_path)
    queue.add(["recipes"], "runs/a")
    queue.stop(1)
    assert queue.jobs() == []


STARTER = """
import sys
from atomtune.jobs import Queue
queue = Queue(sys.argv[1])
queue.add(["examples", sys.argv[1] + "/images"], "images")
queue.advance()
"""


def test_a_job_outlives_who_started_it(tmp_path):
    subprocess.run([sys.executable, "-c", STARTER, str(tmp_path)], check=True)
    (job,) = until(Queue(tmp_path), "ended")  # nobody waited for its exit code
    assert "images" in job.message and (tmp_path / "images" / "teapot.png").is_file()


def test_a_number_of_another_process_is_not_the_job(tmp_path):
    (tmp_path / "0001-a.started.json").write_text(
        f'{{"words": ["recipes"], "out": "a", "pid": {os.getpid()}, "born": 0}}'
    )
    (tmp_path / "0002-b.started.json").write_text('{"words": 3}')
    assert [job.state for job in Queue(tmp_path).jobs()] == ["ended"]


def test_a_running_job_is_stopped_by_sigterm(tmp_path):
    queue = Queue(tmp_path / "jobs")
    folder = Path(__file__).parents[1] / "src" / "atomtune" / "moji" / "images" / "teapot"
    words = ["customize", folder, "--class-name", "teapot", "--out", tmp_path / "run", "--steps", "5000"]
    queue.add([*words, "--no-preserve", "--report-to", "none", "--sample-every", "0"], tmp_path / "run")
    queue.advance()
    end = time.monotonic() + 300
    while not (tmp_path / "run" / "logs" / "journal.jsonl").is_file():
        assert time.monotonic() < end
        time.sleep(0.1)
    queue.stop(1)
    until(queue, "stopped")


def test_what_a_running_job_does_is_said(tmp_path):
    """The progress bars that a command draws while it works (rich draws none into a file by itself)."""
    queue, seen = Queue(tmp_path / "jobs"), set()
    queue.add(["inspect", ADAPTER, "--out", tmp_path / "page.html", "--steps", 2, "--top", 1], tmp_path / "page.html")
    end = time.monotonic() + 300
    while not any(re.fullmatch(r"running: drawing with(out)? the adapter +━.*%.*", state) for state in seen):
        assert time.monotonic() < end, seen
        queue.advance()
        seen.add(overview(queue, {})[0][2])
    queue.stop(1)
    until(queue, "stopped")


@pytest.mark.parametrize("cut", range(1, 7))
def test_a_line_that_is_cut_within_a_colour_is_read_without_it(tmp_path, cut):
    log = tmp_path / "0001-a.log"
    log.write_text("one\n\x1b[32mtwo ━" + "\x1b[2;36m"[:cut], encoding="utf-8")
    assert jobs._last_line(log) == "two ━"


def test_what_there_is_at_a_glance(tmp_path):
    queue = Queue(tmp_path / "jobs")
    run = tmp_path / "made-elsewhere"
    (run / "logs").mkdir(parents=True)
    start = {"pid": 1, "born": 0, "host": "elsewhere", "steps": 9}
    (run / "logs" / "journal.jsonl").write_text(
        json.dumps(start) + "\n" + json.dumps({"step": 4, "loss": 1.0, "seconds": 2}) + "\n"
    )
    queue.add(["recipes", "nothing"], tmp_path / "waits")
    (queue.folder / "0002-failed.started.json").write_text('{"words": ["edit"], "out": "runs/failed", "code": 2}')
    (queue.folder / "0002-failed.log").write_text("training\r\x1b[32matomtune: there is no image\x1b[0m\n")
    assert overview(queue, {"made-elsewhere": run, "downloaded": tmp_path}) == [
        ("waits", "recipes", "queued"),
        ("failed", "edit", "failed: there is no image"),
        ("made-elsewhere", "customize", "stopped at step 4 of 9"),
        ("downloaded", "", "an adapter"),
    ]
    # A job whose run has not begun anew runs: its journal is that of an earlier process.
    os.utime(run / "logs" / "journal.jsonl", (0, 0))
    own = {"words": ["customize"], "out": str(run), "pid": os.getpid(), "born": psutil.Process().create_time()}
    (queue.folder / "0003-made-elsewhere.started.json").write_text(json.dumps(own))
    assert ("made-elsewhere", "customize", "running") in overview(queue, {"made-elsewhere": run})
    (queue.folder / "0003-made-elsewhere.started.json").unlink()
    queue.stop_run(tmp_path / "waits")
    with pytest.raises(UserError, match="made-elsewhere is not being trained now"):
        queue.stop_run(run)
    assert [job.words for job in queue.jobs()] == [["edit"]]
