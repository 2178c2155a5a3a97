"""The nearest picture of pretraining, on three drawings of our own."""

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("resvg_py", reason="pretraining renders with resvg-py, of the extra `dev`")

from atomtune.moji.names import SEEN_NAMES
from atomtune.moji.pipeline import random_pipeline
from atomtune.moji.scenes import SIZES, Scene
from pretraining import evaluate
from pretraining.drawings import Drawings

NAMES = SEEN_NAMES[:2]


@pytest.fixture
def drawings(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, "SEEN_NAMES", NAMES)
    rng, arrays = np.random.default_rng(0), {}
    for key in (f"{NAMES[0]}|noto", f"{NAMES[0]}|twemoji", f"{NAMES[1]}|noto"):
        for pixels in SIZES.values():
            arrays[f"{key}|{pixels}"] = rng.integers(0, 256, (pixels, pixels, 4), np.uint8)
    np.savez(tmp_path / "drawings.npz", allow_pickle=False, **arrays)
    return Drawings(tmp_path / "drawings.npz")


def test_the_nearest_may_have_another_name_and_style(drawings):
    asked = [Scene(NAMES[0], "noto", "red"), Scene(NAMES[0], "noto", "blue")]
    seen = [Scene(NAMES[1], "noto", "red"), Scene(NAMES[0], "twemoji", "blue")]
    assert not any(scene.kept_out for scene in seen)
    same, real = (drawings.picture(scene) for scene in seen)
    paler = Image.blend(real, Image.new("RGB", real.size, "white"), 0.1)
    pictures = [same, paler]
    found = evaluate.nearest(pictures, asked, drawings)
    assert [one.scene for one in found] == seen
    assert found[0].rms == 0
    difference = (np.asarray(real, float) - np.asarray(paler, float)) / 255
    assert found[1].rms == pytest.approx(np.sqrt((difference**2).mean()), rel=1e-5)


def test_what_pretraining_kept_out_is_never_the_nearest(drawings):
    kept = next(s for s in (Scene(n, "noto", b) for n in NAMES for b in evaluate.BACKGROUNDS) if s.kept_out)
    (found,) = evaluate.nearest([drawings.picture(kept)], [kept], drawings)
    assert found.scene != kept
    assert found.rms > 0


def test_small_scenes_are_off_the_center_and_the_others_as_before(drawings):
    small = evaluate.scenes(drawings, 20, small=True)
    assert {scene.size for scene in small} == {"small"} and "center" not in {scene.place for scene in small}
    assert not any(scene.kept_out for scene in small)
    normal = evaluate.scenes(drawings, 20)
    assert {scene.size for scene in normal} == {"normal"}
    assert [scene.place for scene in normal[::2]] == ["center"] * 10


def test_weights_that_pretraining_kept_are_scored_beside_the_others(drawings, tmp_path, monkeypatch):
    pipe = random_pipeline()
    for part in ("transformer", "vae"):
        getattr(pipe, part).half().save_pretrained(tmp_path / part, variant="fp16")
    wanted = [Scene(name, "noto", "red") for name in NAMES]
    point = evaluate.of_kept(tmp_path, 500_000, wanted, wanted[:1])
    assert point["images_seen"] == 500_000
    assert {"name_first", "style", "background", "place", "small_place", "small_name_first"} <= point.keys()
