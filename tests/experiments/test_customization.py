"""Table 1's code: its tasks, its intervals, and the same code on DreamBooth's folders and a small PixArt-Σ."""

import json
import sys

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("resvg_py", reason="pretraining renders with resvg-py, of the extra `dev`")

from atomtune.errors import UserError
from atomtune.metrics import background_colour, place_and_size
from atomtune.moji.names import HELD_OUT_NAMES
from experiments.customization import run, tasks
from tests.metrics.tiny_models import write_clip, write_dino

FILE = """Classes

subject_name,class
candle,candle
cat2,cat
vase,vase

Prompts

Object Prompts

prompt_list = [
'a {0} {1} in the jungle'.format(unique_token, class_token),
'a red {0} {1}'.format(unique_token, class_token),
'a cube shaped {0} {1}'.format(unique_token, class_token)
]

Live Subject Prompts

prompt_list = [
'a {0} {1} wearing a red hat'.format(unique_token, class_token),
'a wet {0} {1}'.format(unique_token, class_token)
]
"""


@pytest.fixture
def dreambooth(tmp_path):
    folder, random = tmp_path / "dreambooth", np.random.default_rng(0)
    for name in ("candle", "cat2"):
        (folder / name).mkdir(parents=True)
        for number in range(2):
            pixels = random.integers(0, 255, (64, 64, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number:02d}.jpg")
    (folder / "prompts_and_classes.txt").write_text(FILE, encoding="utf-8")
    return folder


def test_dreambooths_folders_are_read_as_they_are_published(dreambooth):
    found = tasks.of_dreambooth(dreambooth)
    assert list(found) == ["candle", "cat2"]  # there is no folder of the vase
    assert found["candle"].prompts == ["a sks candle in the jungle", "a red sks candle", "a cube shaped sks candle"]
    assert found["cat2"].prompts == ["a sks cat wearing a red hat", "a wet sks cat"]
    assert [text for text, _ in found["cat2"].images] == ["a sks cat"] * 2
    (dreambooth / "prompts_and_classes.txt").write_text("nothing")
    with pytest.raises(UserError, match="DreamBooth's own file"):
        tasks.of_dreambooth(dreambooth)
    with pytest.raises(UserError, match=r"no prompts_and_classes\.txt"):
        tasks.of_dreambooth(dreambooth / "candle")


@pytest.mark.parametrize("name", HELD_OUT_NAMES)
def test_every_subject_of_moji_has_five_images_and_25_prompts_that_real_drawings_obey(name):
    task = tasks.of_moji(name)
    assert len(task.images) == 5 and len(task.prompts) == len({*task.prompts}) == len(task.scenes) == 25
    assert [text for text, _ in task.images] == task.prompts[:5]
    assert all(f"sks {task.class_name}" in prompt for prompt in task.prompts)
    for scene, prompt in zip(task.scenes, task.prompts):
        assert f" {scene.background} background" in prompt
        assert scene.place == "center" or scene.place in prompt
    for (_, image), scene in zip(task.images, task.scenes):
        assert background_colour(image) == scene.background


def test_obeyed_is_what_real_drawings_are():
    """Names and styles are the judge's, which is right in 19 of 20; places and sizes are those of the pixels."""
    scenes = [scene for name in HELD_OUT_NAMES for scene in tasks.of_moji(name).scenes[:5]]
    images = [image for name in HELD_OUT_NAMES for _, image in tasks.of_moji(name).images]
    found = run.obeyed(images, scenes)
    assert found["right_background"] == 1 and min(found["right_name"], found["right_style"]) > 0.9
    assert found["right_place"] == np.mean(
        [(place_and_size(i) or (None,))[0] == s.place for i, s in zip(images, scenes)]
    )
    assert 0.75 < found["obeyed"] <= min(share for key, share in found.items() if key != "obeyed")
    assert run.obeyed(images[1:] + images[:1], scenes)["obeyed"] < 0.1


def test_the_interval_is_that_of_the_mean():
    numbers = np.random.default_rng(1).normal(3, 2, 400)
    low, high = run.interval(numbers.tolist())
    assert (low, high) == pytest.approx((numbers.mean() - 1.96 * 0.1, numbers.mean() + 1.96 * 0.1), abs=0.03)


def test_the_rate_is_chosen_when_all_its_cells_are_there():
    found = {
        f"{name}-lora-{rate:g}": {"fidelity": 0.5, "alignment": 0.1 * place}
        for place, rate in enumerate(run.RATES)
        for name in run.TUNED
    }
    assert run.best_rate(found, "lora") == run.RATES[-1]
    found.pop(f"{run.TUNED[0]}-lora-{run.RATES[0]:g}")
    assert run.best_rate(found, "lora") is None
    assert not {*run.TUNED} & {*run.SCORED} and len(run.SCORED) == 27


def test_at_the_papers_scale_it_is_the_same_code(base, dreambooth, tmp_path, monkeypatch, capsys):
    """Two subjects and two prompts, on a small PixArt-Σ, with small CLIP and DINO."""
    clip, dino = write_clip(tmp_path / "clip"), write_dino(tmp_path / "dino")
    words = ["--base", base, "--subjects", dreambooth, "--prompts", 2, "--steps", 2, "--out", tmp_path / "out"]
    words += ["--metrics", "clip,dino,vendi,drift,pres,div", "--clip-model", clip, "--dino-model", dino]
    monkeypatch.setattr(sys, "argv", ["run.py", *map(str, words)])
    monkeypatch.setattr(run, "NUM", 2)
    monkeypatch.setattr(run, "OTHERS", (2, 1))
    run.paper_scale()
    lines = (tmp_path / "out" / "results.jsonl").read_text(encoding="utf-8").splitlines()
    cells = {cell["name"]: cell["values"] for cell in map(json.loads, lines)}
    assert {*cells} == {f"{name}-{method}" for name in ("candle", "cat2") for method in ("base", "lora", "atoms")}
    keys = {"clip_t", "clip_i", "dino", "vendi", "pixels", "features", "pres", "div"}
    assert all(keys <= {*values} for values in cells.values())
    assert cells["cat2-base"]["pixels"] == 0 < cells["cat2-lora"]["parameters"]
    assert capsys.readouterr().out.splitlines()[-1].startswith("atoms {")
