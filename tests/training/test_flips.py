"""Flips: the mirror images are trained on too, and a run that was stopped goes on with the same ones."""

from PIL import Image, ImageOps

from atomtune.training import encoding
from tests.training.quick import state, weights


def test_images_are_flipped_half_of_the_times_and_after_a_stop_in_the_same_way(run, images, tmp_path, monkeypatch):
    seen, draw = [], encoding.Latents.draw
    monkeypatch.setattr(encoding.Latents, "draw", lambda self, index, g: (seen.append(index), draw(self, index, g))[1])
    run("whole", random_flip=True, steps=12, sample_every=6)
    drawn = [i for index in seen[:12] for i in index]
    assert {i // 3 for i in drawn} == {0, 1}  # three images, and their mirror images after them
    assert sorted(i % 3 for i in drawn) == [0] * 8 + [1] * 8 + [2] * 8
    run("stopped", random_flip=True, steps=6, sample_every=6)
    run("stopped", random_flip=True, steps=12, sample_every=6)
    assert state(tmp_path / "stopped") == state(tmp_path / "whole")


def test_what_is_learnt_from_a_flip_is_the_mirror_image(run, images, tmp_path, monkeypatch):
    """With a coin that always says flip, the run is that on mirrored files."""
    (tmp_path / "turned").mkdir()
    for file in images.iterdir():
        with Image.open(file) as image:
            exact = image.resize((64, 64))  # of the size that is trained on, so that both are scaled alike
        exact.save(file)
        ImageOps.mirror(exact).save(tmp_path / "turned" / file.name)
    draw = encoding.Latents.draw
    run("mirrored", images=tmp_path / "turned", random_flip=True, steps=2)
    monkeypatch.setattr(
        encoding.Latents, "draw", lambda self, index, g: draw(self, [(i + 3) % len(self.mean) for i in index], g)
    )
    run("swapped", random_flip=True, steps=2)
    assert weights(tmp_path / "swapped") == weights(tmp_path / "mirrored")
