"""A few kills; `python -m benchmarks.reliability --only kills` does fifty by each signal."""

import json
import signal
from dataclasses import asdict

import pytest

from benchmarks.reliability.kills import SIGNALS, Killed


@pytest.fixture(scope="module")
def killed(base, tmp_path_factory):
    return Killed(tmp_path_factory.mktemp("killed") / "run", base, steps=20, sample_every=0)


@pytest.mark.slow
@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_a_run_stopped_at_random_moments_ends_with_the_same_bits(killed, number):
    counts = killed.kill(number, 3)
    assert counts.kills >= 3 and counts.runs >= 1
    assert sum(json.loads(json.dumps(asdict(counts)))["exit_codes"].values()) == counts.kills
    assert counts.exit_codes.keys() <= {-number, 130}
    assert number is not signal.SIGKILL or counts.exit_codes.keys() == {-number}
