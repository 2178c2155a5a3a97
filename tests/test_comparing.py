"""Runs side by side on a small PixArt-Σ, with small models of CLIP and DINO; never on real weights."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

import atomtune
from atomtune import manifest, sampling
from atomtune.metrics import drift, load_clip, load_dino, vendi
from tests.metrics.tiny_models import write_clip, write_dino

METRICS = ("clip", "dino", "vendi", "drift", "pres", "div")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder, random = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for name in ("a", "b"):
        Image.fromarray(random.integers(0, 255, (64, 80, 3), dtype=np.uint8)).save(folder / f"{name}.png")
    return folder


@pytest.fixture(scope="module")
def runs(base, images, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs")
    options = {"class_name": "dog", "base": base, "steps": 3, "learning_rate": 1e-2, "report_to": "none"}
    atomtune.customize(images, out=out / "atoms", num_atoms=8, density=0.5, target_modules=("attn1",), **options)
    atomtune.customize(images, out=out / "lora", method="lora", rank=2, **options)
    return [out / "atoms", out / "lora"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return {
        "clip": str(write_clip(tmp_path_factory.mktemp("clip"))),
        "dino": str(write_dino(tmp_path_factory.mktemp("dino"))),
    }


def test_numbers_are_those_of_the_images_that_were_drawn(base, runs, models, images, tmp_path):
    """Each once more, from the files and by the metrics themselves."""
    seen = []
    prompts = ["a sks dog on a red background", "a sks cat"]
    found = atomtune.compare(runs, tmp_path, prompts, METRICS, num=2, seed=5, **models, on_column=seen.append)
    assert seen == ["base", "atoms", "lora"] == [*found][:3]
    assert found == json.loads((tmp_path / "scores.json").read_text(encoding="utf-8"))
    clip, dino = load_clip(models["clip"]), load_dino(models["dino"])
    learnt = [sampling.read_image(file) for file in sorted(images.iterdir())]

    def drawn(*places):
        files = sorted(tmp_path.joinpath("images", *places).glob("*.png"))
        return [sampling.read_image(file) for file in files]

    plain = ["a dog on a red background", "a dog on a red background", "a cat", "a cat"]
    for label in ("base", "atoms", "lora"):
        own, numbers = drawn(label), found[label]
        assert len(own) == 4
        assert numbers["clip_t"] == pytest.approx(clip.alignment(own, plain).mean(), abs=6e-4)
        assert numbers["clip_i"] == pytest.approx(clip.fidelity(own, learnt).mean(), abs=6e-4)
        assert numbers["dino"] == pytest.approx(dino.fidelity(own, learnt).mean(), abs=6e-4)
        diversity = np.mean([vendi(dino.features(own[:2])), vendi(dino.features(own[2:]))])
        assert numbers["vendi"] == pytest.approx(diversity, abs=6e-3)
        before, after = ([*drawn(of, "unrelated"), *drawn(of, "neighbours")] for of in ("base", label))
        moved = drift(before, after, dino.features)
        assert numbers["pixels"] == pytest.approx(moved.pixels, abs=6e-4)
        assert numbers["features"] == pytest.approx(moved.features, abs=6e-4)
    assert found["base"]["pixels"] == 0 and found["base"]["unchanged"] == 1
    assert found["atoms"]["pixels"] > 0 < found["lora"]["pixels"]
    summary = json.loads((runs[0] / "summary.json").read_text(encoding="utf-8"))
    assert found["atoms"]["parameters"] == summary["trainable_parameters"]
    assert found["atoms"]["atoms"] == 16 and "atoms" not in found["lora"]
    settings = [sampling.read_settings(file) for file in sorted((tmp_path / "images" / "lora").glob("*.png"))]
    assert [(own["prompt"], own["seed"]) for own in settings] == [(p, s) for p in prompts for s in (5, 6)]
    assert {"scores.json", "grid.png"} <= manifest.written(tmp_path)


def test_an_adapter_folder_alone_is_compared_and_images_are_not_drawn_again(runs, tmp_path):
    adapter = shutil.copytree(runs[0] / "adapter", tmp_path / "base")
    out = tmp_path / "out"
    found = atomtune.compare([adapter], out, num=1)
    assert found["base-1"]["parameters"] > 0 and "train_seconds" not in found["base-1"]
    assert found["metrics"] == ["drift"] and len(found["prompts"]) > 1
    times = {file: file.stat().st_mtime_ns for file in out.glob("images/**/*.png")}
    assert atomtune.compare([adapter], out, num=1) == found
    assert times == {file: file.stat().st_mtime_ns for file in out.glob("images/**/*.png")}


def test_without_a_word_of_what_was_learnt_prompts_are_needed(runs, tmp_path):
    pipe = atomtune.load_base(
        json.loads((runs[0] / "adapter/adapter_config.json").read_text())["base_model_name_or_path"]
    )
    atomtune.load_adapter(pipe, runs[0])
    atomtune.save_adapter(pipe, tmp_path / "nameless")
    with pytest.raises(atomtune.UserError, match="give prompts to compare with"):
        atomtune.compare([tmp_path / "nameless"], tmp_path / "out")
    found = atomtune.compare([tmp_path / "nameless", runs[0]], tmp_path / "out", ["a cat"], num=1)
    assert found["nameless"]["pixels"] == found["atoms"]["pixels"]
