"""Before a run on the card, it is told whether it fits."""

import logging
from typing import Any

import pytest

import atomtune
from atomtune.planning.memory import CONTEXT
from atomtune.training.trainer import Trainer

QUICK: dict[str, Any] = {"class_name": "dog", "steps": 1, "report_to": "none", "num_atoms": 8, "device": "gpu"}
NONE_FITS = "no option makes it fit; choose a smaller resolution or another base (see `atomtune plan`)."


@pytest.mark.parametrize("free, said", [(None, ""), (80 * 2**30, ""), (CONTEXT, NONE_FITS)])
def test_a_run_that_does_not_fit_is_told(free, said, base, images, tmp_path, monkeypatch, caplog, card):
    """`free` is None for an accelerator that does not tell."""
    monkeypatch.setattr(Trainer, "_sample", lambda self: [])
    monkeypatch.setattr("atomtune.training.run.free_memory", lambda device: free)
    with caplog.at_level(logging.INFO, logger="atomtune"):
        atomtune.customize(images, base=base, out=tmp_path / "run", mixed_precision="no", **QUICK)
    assert "is not known" not in caplog.text
    told = [record.getMessage() for record in caplog.records if "on the card" in record.getMessage()]
    assert bool(told) == bool(said)
    if said:
        assert told[0].endswith(said) and "0.6 GB are free" in told[0]
