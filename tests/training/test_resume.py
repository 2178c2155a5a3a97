"""A run killed with SIGKILL, again and again, ends with the bits of one that was left alone."""

import re
import signal
from pathlib import Path

import pytest

from atomtune import manifest
from tests.training.run_and_die import customize

OPTIONS = {
    "class_name": "dog",
    "steps": 12,
    "batch_size": 2,
    "checkpoint_every": 4,
    "sample_every": 5,
    "caption_dropout": 0.3,
    "lr_scheduler": "cosine",
    "prior_preservation": True,
    "num_class_images": 2,
}


def files(out: Path) -> dict[str, bytes]:
    """Everything that must be the same to the bit: weights, optimizer and images."""
    kept = [*out.glob("adapter/*.safetensors"), *out.glob("checkpoints/**/*.safetensors"), *out.glob("samples/*")]
    return {str(file.relative_to(out)): file.read_bytes() for file in kept}


@pytest.mark.slow
def test_killed_at_any_moment_it_ends_with_the_same_bits(base, images, tmp_path):
    whole, run = tmp_path / "whole" / "run", tmp_path / "killed" / "run"
    options = {**OPTIONS, "images": str(images), "base": base}
    assert customize("never", **options, out=str(whole)) == 0

    moments = {
        "step:3": [],  # before there is a checkpoint
        "checkpoint:2": [".atomtune-", "step-000004"],  # half of the second one is on disk
        "step:3 ": ["step-000004"],  # in the step after the sixth
        "adapter": ["step-000008", "step-000012"],
    }
    for moment, left in moments.items():
        assert customize(moment.strip(), **options, out=str(run)) == -signal.SIGKILL
        folder = run / "checkpoints"
        assert sorted(re.sub(r"(?<=atomtune-).*", "", path.name) for path in folder.glob("*")) == left
        assert not (run / "adapter").exists()
        assert not (run / "summary.json").exists()
    assert customize("never", **options, out=str(run)) == 0

    assert list(files(run)) == list(files(whole))
    assert files(run) == files(whole)
    assert not list(run.rglob(".atomtune-*"))
    assert manifest.written(run) >= {str(file.relative_to(run)) for file in run.rglob("*") if file.is_file()} - {
        manifest.NAME
    }
