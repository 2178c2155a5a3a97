"""Text encoders, autoencoder and denoiser are never in memory together, and on the accelerator only to work."""

import gc
import json
import subprocess
import sys
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

from atomtune.bases import DENOISER, IMAGES, TEXT, BaseParts
from tests.training.quick import state

WORD = {TEXT: "text encoders", IMAGES: "autoencoder", DENOISER: "denoiser"}
ENCODES = ["text encoders", "autoencoder", "denoiser"]
DRAWS = "autoencoder beside denoiser"


# With --offload the denoiser is not there while samples are decoded; else training goes on with it at once.
@pytest.mark.parametrize("offload", ["", "model"])
def test_the_parts_of_a_base_are_on_the_accelerator_while_they_work(offload, base, images, tmp_path):
    command = [sys.executable, "-m", "tests.training.parts_on_a_gpu", base, images, tmp_path / "run", offload]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert (said["device"], said["dtype"]) == ("gpu:0", "float32")
    assert said["found"] == [
        *([] if offload else [["decodes", "transformer, vae"]]),
        ["decodes", "vae"],  # an image of the class
        ["denoises", "transformer"],
        ["encodes", "vae"],
        ["reads a prompt", "text_encoder"],
    ]


@pytest.fixture
def loads(monkeypatch) -> Iterator[list[str]]:
    """What was loaded in turn, and beside which other parts that are still in memory; nothing waits for Python's
    garbage collector."""
    seen: list[str] = []
    alive: list[tuple[str, Any]] = []
    load = BaseParts.load

    def looked_at(self: BaseParts, kind: str, *dtype: Any) -> None:
        there = {name: getattr(self.pipe, name) for name in self._names(kind) if name not in self._absent}
        load(self, kind, *dtype)
        if there:
            return
        beside = sorted({WORD[other] for other, part in alive if part() is not None})
        seen.append(" beside ".join([WORD[kind], *beside]))
        alive.extend((kind, weakref.ref(getattr(self.pipe, name))) for name in self._names(kind))

    monkeypatch.setattr(BaseParts, "load", looked_at)
    gc.disable()
    yield seen
    gc.enable()


def test_a_run_has_one_part_in_memory_and_the_autoencoder_beside_the_denoiser_while_it_draws(run, loads):
    run(sample_every=2)
    assert loads == [*ENCODES, DRAWS, DRAWS]  # samples in the middle and at the end


def test_class_images_are_drawn_by_denoiser_and_autoencoder_and_only_once(run, loads):
    options = {"prior_preservation": True, "num_class_images": 2}
    run(**options)
    drawing = ["text encoders", "autoencoder", "denoiser beside autoencoder"]  # which then trains
    assert loads == [*drawing, DRAWS]
    loads.clear()
    run(steps=6, **options)
    assert loads == [*ENCODES, DRAWS]


def test_other_prompts_are_answered_with_the_text_encoders_gone(run, loads, tmp_path, monkeypatch):
    monkeypatch.setenv("ATOMTUNE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "others.txt").write_text("a cat\n")
    options = {"preserve": True, "preserve_prompts": tmp_path / "others.txt"}
    run("first", **options)
    assert loads == ["text encoders", "denoiser", DRAWS, "denoiser", *ENCODES, DRAWS]
    loads.clear()
    run("second", **options)
    assert loads == [*ENCODES, DRAWS]


def test_a_run_is_the_same_to_the_bit_as_with_all_parts_in_memory(run, tmp_path, monkeypatch):
    (tmp_path / "others.txt").write_text("a cat\na dog on the beach\n")
    options = {"preserve": True, "preserve_prompts": tmp_path / "others.txt", "preserve_share": 1.0, "sample_every": 2}
    options |= {"prior_preservation": True, "num_class_images": 2, "caption_dropout": 0.3, "random_flip": True}
    monkeypatch.setenv("ATOMTUNE_CACHE", str(tmp_path / "cache"))
    run("apart", **options)
    opened, loaded = BaseParts.__init__, BaseParts.load

    def whole(self: BaseParts, *arguments: Any) -> None:
        opened(self, *arguments)
        for part in WORD:
            loaded(self, part)

    monkeypatch.setattr(BaseParts, "__init__", whole)
    monkeypatch.setattr(BaseParts, "free", lambda *_: None)
    monkeypatch.setenv("ATOMTUNE_CACHE", str(tmp_path / "another cache"))
    run("together", **options)
    assert state(tmp_path / "apart") == state(tmp_path / "together")
