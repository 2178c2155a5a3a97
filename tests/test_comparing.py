"""Runs side by side on a small PixArt-Σ, with small models of CLIP and DINO; never on real weights."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

import atomtune
from atomtune import manifest, sampling
from atomtune.comparing import read_comparison
from atomtune.errors import UserError
from atomtune.metrics import drift, load_clip, load_dino, vendi
from atomtune.training.data import fitted
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
    seen: list[str] = []
    prompts = ["a sks dog on a red background", "a sks cat"]
    found = atomtune.compare(runs, tmp_path, prompts, METRICS, num=2, seed=5, **models, on_column=seen.append)
    assert seen == ["base", "atoms", "lora"] == [*found["scores"]]
    assert found == json.loads((tmp_path / "scores.json").read_text(encoding="utf-8"))
    scores = found["scores"]
    assert read_comparison(tmp_path)[0] == scores
    assert read_comparison(tmp_path)[1].tobytes() == sampling.read_image(tmp_path / "grid.png").tobytes()
    clip, dino = load_clip(models["clip"]), load_dino(models["dino"])
    learnt = [fitted(sampling.read_image(file), 64) for file in sorted(images.iterdir())]

    def drawn(*places):
        files = sorted(tmp_path.joinpath("images", *places).glob("*.png"))
        return [sampling.read_image(file) for file in files]

    plain = ["a dog on a red background", "a dog on a red background", "a cat", "a cat"]
    for label in ("base", "atoms", "lora"):
        own, numbers = drawn(label), scores[label]
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
    assert found["scores"]["base"]["pixels"] == 0 and found["scores"]["base"]["unchanged"] == 1
    assert found["scores"]["atoms"]["pixels"] > 0 < found["scores"]["lora"]["pixels"]
    summary = json.loads((runs[0] / "summary.json").read_text(encoding="utf-8"))
    assert found["scores"]["atoms"]["parameters"] == summary["trainable_parameters"]
    assert found["scores"]["atoms"]["atoms"] == 16 and "atoms" not in found["scores"]["lora"]
    settings = [sampling.read_settings(file) for file in sorted((tmp_path / "images" / "lora").glob("*.png"))]
    assert [(own["prompt"], own["seed"]) for own in settings] == [(p, s) for p in prompts for s in (5, 6)]
    assert {"scores.json", "grid.png"} <= manifest.written(tmp_path)


@pytest.mark.parametrize("text", [None, "", "[]", "{}", '{"scores": 3}', '{"scores": {"base": {"clip_t": "x"}}}'])
def test_what_is_no_comparison_is_a_sentence(text, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "grid.png")
    if text is not None:
        (tmp_path / "scores.json").write_text(text)
    with pytest.raises(UserError, match="there is no comparison in"):
        read_comparison(tmp_path)


def test_an_adapter_folder_alone_is_compared_and_images_are_not_drawn_again(runs, tmp_path):
    adapter = shutil.copytree(runs[0] / "adapter", tmp_path / "base")
    out = tmp_path / "out"
    found = atomtune.compare([adapter], out, num=1)
    assert found["scores"]["base-2"]["parameters"] > 0 and "train_seconds" not in found["scores"]["base-2"]
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
    assert found["scores"]["nameless"]["pixels"] == found["scores"]["atoms"]["pixels"]


def test_every_adapter_has_a_column_of_its_own(runs, tmp_path, monkeypatch):
    """Whatever its folder is called, and from wherever it is named."""
    for name in ("base", "a/seed", "b/seed", "seed-2"):
        shutil.copytree(runs[0] / "adapter", tmp_path / name)
    monkeypatch.chdir(tmp_path / "base")
    adapters = [".", "../a/seed", "../b/seed", "../seed-2", "../a/../base"]
    found = atomtune.compare(adapters, tmp_path / "out", ["a cat"], num=1, steps=1)
    assert [*found["scores"]] == ["base", "base-2", "seed", "seed-2", "seed-2-2", "base-3"]
    assert found["seed"] == 0 and len({json.dumps(own) for own in found["scores"].values()}) == 2
    for label in ("a/b", "..", "", "images"):
        with pytest.raises(atomtune.UserError, match=f"'{label}' cannot be the label"):
            atomtune.compare({label: runs[0]}, tmp_path / "out")


def test_adapters_draw_as_generate_does(base, images, tmp_path):
    """In evaluation: batch_topk with its own threshold, a LoRA without its dropout."""
    options = {"class_name": "dog", "base": base, "steps": 2, "learning_rate": 1e-2, "report_to": "none"}
    own = {"activation": "batch_topk", "num_atoms": 8, "density": 0.5, "target_modules": ("attn1",)}
    atomtune.customize(images, out=tmp_path / "run", **options, **own)
    atomtune.compare([tmp_path / "run"], tmp_path / "out", ["a sks dog", "a cat"], num=1)
    pipe = atomtune.load_base(base)
    atomtune.load_adapter(pipe, tmp_path / "run")
    for file in (tmp_path / "out" / "images" / "run").glob("*.png"):
        (again,) = atomtune.generate(pipe, sampling.read_settings(file)["prompt"])
        difference = np.asarray(again.image, dtype=int) - np.asarray(sampling.read_image(file), dtype=int)
        assert np.abs(difference).max() <= 1


def test_an_adapter_of_several_subjects_has_no_fidelity_to_all_of_their_images(runs, base, images, tmp_path, caplog):
    shutil.copytree(runs[0], tmp_path / "two")
    pipe = atomtune.load_base(base)
    atomtune.load_adapter(pipe, runs[0])
    words = [{"token": "sks", "class_name": "dog"}, {"token": "ohwx", "class_name": "cat"}]
    atomtune.save_adapter(pipe, tmp_path / "two" / "adapter", subjects=words)
    options = {"num": 1, "steps": 1, "clip": str(write_clip(tmp_path / "clip"))}
    found = atomtune.compare([tmp_path / "two"], tmp_path / "out", metrics=["clip", "drift", "div"], **options)
    assert {prompt.split()[1] for prompt in found["prompts"]} == {"sks", "ohwx"}
    assert not {"clip_i", "div"} & found["scores"]["two"].keys() and "pixels" in found["scores"]["two"]
    assert "the first adapter learnt several subjects, so clip cannot say" in caplog.text
    assert "the first adapter is of several classes, so there is no div" in caplog.text
    found = atomtune.compare([tmp_path / "two"], tmp_path / "out", ["a sks dog"], ["clip"], images, **options)
    assert "clip_i" in found["scores"]["two"]


def test_what_cannot_be_scored_is_said(runs, images, tmp_path, caplog):
    moved = tmp_path / "moved"
    shutil.copytree(runs[0], moved)
    config = (moved / "config.yaml").read_text(encoding="utf-8")
    (moved / "config.yaml").write_text(config.replace(str(images), str(tmp_path / "gone")), encoding="utf-8")
    clip = str(write_clip(tmp_path / "clip"))
    found = atomtune.compare([moved], tmp_path / "out", ["a cat"], ["clip"], num=1, steps=1, clip=clip)
    assert "clip_t" in found["scores"]["moved"] and "clip_i" not in found["scores"]["moved"]
    assert "name their folder with --images" in caplog.text
    found = atomtune.compare([moved], tmp_path / "out", ["a cat"], ["clip"], images, num=1, steps=1, clip=clip)
    assert "clip_i" in found["scores"]["moved"]
    found = atomtune.compare(runs[:1], tmp_path / "out", ["a cat"], ["clip"], "none", num=1, steps=1, clip=clip)
    assert "clip_i" not in found["scores"][next(reversed(found["scores"]))]
    with pytest.raises(atomtune.UserError, match="the judge knows moji's drawings alone"):
        atomtune.compare([moved], tmp_path / "out", ["a cat"], ["judge"])
