"""edit: two ladders, the trade-off, and what it leaves on disk."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from atomtune import manifest
from atomtune.editing import FLOOR, Relative, Rung, edit, read_ladder
from atomtune.errors import UserError
from atomtune.metrics import load_clip, load_dino
from tests.metrics.tiny_models import write_clip, write_dino

TRAINING = {"steps": 2, "num_atoms": 16, "density": 0.5, "report_to": "none", "learning_rate": 0.01}


class Scores:
    """Alignment rises from rung to rung, so fewer atoms are better; with `rise` below 0 they are worse."""

    def __init__(self, fidelity: float = 0.5, rise: float = 0.1) -> None:
        self.asked, self.rise, self.known = 0, rise, fidelity

    def alignment(self, images, prompts):
        self.asked += 1
        return np.full(len(images), 0.5 + self.asked * self.rise)

    def fidelity(self, images, references):
        return np.full(len(images), self.known)


@pytest.fixture
def image(tmp_path):
    Image.linear_gradient("L").convert("RGB").save(tmp_path / "it.png")
    return tmp_path / "it.png"


def test_the_rungs_are_drawn_scored_and_the_best_is_a_preset(base, image, tmp_path):
    out = tmp_path / "run"
    result = edit(image, "a red dog", out, "a blue dog", ["L0[3]"], num=1, scorer=Scores(), base=base, **TRAINING)
    labels = [rung["label"] for rung in result["rungs"]]
    fewer = ["4 a token", "2 a token", "1 a token", "12 atoms", "4 atoms"]
    assert labels == ["all atoms", *fewer, "4 atoms without L0[3]"]
    assert result["best"] == "4 atoms"
    assert json.loads((out / "edit.json").read_text()) == result
    assert list(json.loads((out / "preset.json").read_text())) == ["only"]  # the four
    assert len(list((out / "edit").rglob("*.png"))) == 9  # the base, six rungs, one without, and the strip of them
    assert (result["dtype"], result["device"]) == ("float32", "cpu")
    with Image.open(out / "edit.png") as strip:
        assert strip.width > 9 * 128
    read, ladder = read_ladder(out)
    assert read == result and [asdict(rung) for rung, _ in ladder] == result["rungs"]
    assert all(drawn.size == (64, 64) for _, drawn in ladder)
    again = edit(image, "a green dog", out, "a blue dog", num=1, base=base, **TRAINING)  # trains no second time
    kept = [Path(edited["folder"]) / "edit.png" for edited in (result, again)]
    assert kept[0].read_bytes() != kept[1].read_bytes() == (out / "edit.png").read_bytes()  # the first edit is not lost
    assert again["best"] is None and again["rungs"][0]["alignment"] is None
    (out / "edit.json").write_text(json.dumps(result | {"folder": "/etc/.."}))  # leads nowhere else
    for folder in (out, tmp_path / "nowhere"):
        with pytest.raises(UserError, match="there is no edit in"):
            read_ladder(folder)


def test_clip_and_dino_score_between_the_image_and_what_the_base_draws(base, image, tmp_path):
    """a = (CLIP-T - CLIP-T of the image) / (CLIP-T of the base's images - CLIP-T of the image), f likewise."""
    random, prompt = np.random.default_rng(0), "a red dog"
    source, drawn, rung = (
        [Image.fromarray(random.integers(0, 256, (16, 16, 3), dtype=np.uint8)) for _ in range(count)]
        for count in (1, 3, 2)
    )
    models = {
        "clip": load_clip(str(write_clip(tmp_path / "clip"))),
        "dino": load_dino(str(write_dino(tmp_path / "dino"))),
    }
    group = [*source, *drawn]  # of a random model, the least like the prompt is the image
    source, *drawn = (group[place] for place in np.argsort(models["clip"].alignment(group, [prompt] * 4)))
    source = [source]
    relative = Relative(models, prompt, source[0], drawn)
    assert relative.alignment(source, [prompt]) == pytest.approx(0, abs=1e-5)
    assert relative.alignment(drawn, [prompt] * 3).mean() == pytest.approx(1, abs=1e-5)
    assert relative.fidelity(source, source) == pytest.approx(1, abs=1e-5)
    assert relative.fidelity(drawn, source).mean() == pytest.approx(0, abs=1e-5)
    low, high = (models["clip"].alignment(group, [prompt] * len(group)).mean() for group in (source, drawn))
    own = models["clip"].alignment(rung, [prompt] * 2)
    np.testing.assert_allclose(relative.alignment(rung, [prompt] * 2), (own - low) / (high - low), rtol=1e-4)
    with pytest.raises(UserError, match="alignment cannot be scored"):
        Relative(models, prompt, drawn[0], [drawn[0]])
    with pytest.raises(UserError, match="by clip, or by clip and dino"):
        edit(image, prompt, tmp_path / "run", metrics=["dino"], base=base, **TRAINING)


def test_where_no_rung_keeps_image_and_prompt_none_is_best_and_no_earlier_preset_is_left(base, image, tmp_path):
    out = tmp_path / "run"
    options = {"num": 1, "base": base, **TRAINING}
    assert edit(image, "a red dog", out, "a blue dog", scorer=Scores(), **options)["preset"] == str(out / "preset.json")
    smear = edit(image, "a green dog", out, "a blue dog", ["L0[3]"], scorer=Scores(fidelity=0.3), **options)
    assert (smear["best"], smear["preset"]) == (None, None)
    assert smear["rungs"][-1]["label"] == "all atoms without L0[3]"
    assert not (out / "preset.json").exists()
    assert "preset.json" not in manifest.written(out)  # so one that the user puts there is the user's
    assert edit(image, "a green dog", out, "a blue dog", scorer=Scores(fidelity=0.3), floor=0.2, **options)["best"]
    (out / "preset.json").unlink()
    edit(image, "a green dog", out, "a blue dog", scorer=Scores(fidelity=0.3), **options)
    (out / "preset.json").write_text("mine")
    with pytest.raises(UserError, match=r"preset\.json exists already, and is not in the list"):
        edit(image, "a green dog", out, "a blue dog", scorer=Scores(fidelity=0.3), **options)


def test_if_all_atoms_are_best_no_preset_is_needed_and_none_is_written(base, image, tmp_path):
    out = tmp_path / "run"
    found = edit(image, "a red dog", out, "a blue dog", num=1, scorer=Scores(rise=-0.01), base=base, **TRAINING)
    assert (found["best"], found["preset"]) == ("all atoms", None)
    assert not (out / "preset.json").exists()


def test_a_rung_is_best_only_if_both_scores_reach_the_floor():
    assert Rung("", {}, FLOOR, FLOOR).keeps_both(FLOOR)
    assert not Rung("", {}, 0.9, FLOOR - 0.01).keeps_both(FLOOR)
    assert not Rung("", {}, FLOOR - 0.01, 0.9).keeps_both(FLOOR)
    assert not Rung("", {}).keeps_both(0.0)


def test_a_sigma_without_a_density_is_edited_by_numbers_of_atoms_alone(base, image, tmp_path):
    options = TRAINING | {"activation": "soft", "threshold": 0.0}
    result = edit(image, "a red dog", tmp_path / "run", "a blue dog", num=1, base=base, **options)
    assert [rung["label"] for rung in result["rungs"]] == ["all atoms", "12 atoms", "4 atoms"]


def test_a_trade_off_is_the_harmonic_mean_and_nothing_below_zero():
    assert Rung("", {}, 0.3, 0.6).trade_off == pytest.approx(0.4)
    assert Rung("", {}, -0.3, 0.6).trade_off == Rung("", {}).trade_off == 0


def test_atoms_and_images_that_are_not_there_are_sentences(base, image, tmp_path):
    with pytest.raises(UserError, match="edit takes one image"):
        edit(tmp_path, "a dog", tmp_path / "run", base=base)
    with pytest.raises(UserError, match=r"there is no 'L7\[3\]' in this adapter"):
        edit(image, "a dog", tmp_path / "run", "a cat", ["L7[3]"], num=1, base=base, **TRAINING)
