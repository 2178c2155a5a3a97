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
from atomtune.sampling import save_png
from experiments.common import subjects
from experiments.customization import plot, run, tasks
from experiments.drift import run as drift
from experiments.drift.plot import FRONTIER
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


def test_the_rate_is_chosen_when_all_its_cells_are_there():
    found = {
        f"{name}-lora-{rate:g}": {"fidelity": 0.5, "alignment": 0.1 * place}
        for place, rate in enumerate(run.RATES)
        for name in run.TUNED
    }
    assert run.best_rate(found, "lora") == run.RATES[-1]
    found |= {name.replace("lora", "atoms"): values for name, values in found.items()}
    assert run.best_rate(found, "atoms.02") == run.RATES[-1]  # the rate of ρ = .04
    found.pop(f"{run.TUNED[0]}-lora-{run.RATES[0]:g}")
    assert run.best_rate(found, "lora") is None
    assert not {*run.TUNED} & {*run.SCORED} and len(run.SCORED) == 27


def test_methods_share_all_but_the_adapter():
    """And a learning rate is chosen on fewer images, without other prompts."""
    own = {"method", "rank", "target_modules", "num_atoms", "density", "mix_first", "floor"}
    options = [run.options_of(method, kind, 0.003) for method in run.METHODS for kind in run.KINDS]
    shared = {
        kind: [{k: v for k, v in one.items() if k not in own} for one in options[n::2]] for n, kind in enumerate("ab")
    }
    assert all(one == every[0] for every in shared.values() for one in every)
    grid = run.grid()
    tuned = {name: config for name, config in grid.items() if config.tuning}
    assert len(tuned) == 63 and {config.name for config in tuned.values()} == {*run.TUNED}
    strips = [config.strip for config in grid.values() if config.strip]
    assert [*grid] == [*run.grid()] and strips == [f"{name}-base.png" for name in run.SCORED if name in run.SHOWN]


def write_strips(folder):
    folder.mkdir(parents=True, exist_ok=True)
    for name in run.SHOWN[:5]:
        for place, method in enumerate(run.GRID):
            row = run.beside([Image.new("RGB", (64, 64), (50 * place, 50 * image, 90)) for image in range(5)])
            save_png(row, folder / f"{name}-{method}.png", {"prompts": [f"a sks {name} on a red background"] * 4})


def test_the_grids_are_drawn_of_the_subjects_that_are_there(tmp_path):
    write_strips(tmp_path / "images")
    plot.plot(tmp_path / "customization", tmp_path / "docs", tmp_path / "images")
    figures = tmp_path / "docs" / "results" / "figures"
    assert [file.name for file in sorted(figures.iterdir())] == [*run.SHEETS[:2]]
    assert not (tmp_path / "docs" / "front.png").exists()  # waits for the frontier


def test_the_front_page_has_the_frontier_and_a_grid(tmp_path):
    scores = dict.fromkeys(("fidelity", "alignment", "diversity", "pixels"), 0.5)
    curve = {"steps": {str(step): {key: value + step / 1e4 for key, value in scores.items()} for step in drift.STEPS}}
    ways = [f"{name}-{'-'.join(way)}-curve" for name in subjects.SUBJECTS for way in FRONTIER]
    lines = [json.dumps({"name": way, "settings": {}, "cpu_seconds": 1, "values": curve}) for way in sorted(ways)]
    (tmp_path / "drift").mkdir()
    (tmp_path / "drift" / "results.jsonl").write_text("\n".join(lines) + "\n")
    write_strips(tmp_path / "images")
    plot.plot(tmp_path / "customization", tmp_path / "docs", tmp_path / "images")
    assert (tmp_path / "docs" / "front.png").stat().st_size > 10_000


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
