"""What a finished run says of itself."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import atomtune
from atomtune import manifest, metrics
from atomtune.bases import denoiser, load_base
from atomtune.bases.families import FAMILIES
from atomtune.cli import main
from atomtune.moji import random_pipeline
from atomtune.prompts import Subject
from atomtune.sampling import read_settings, save_png
from atomtune.shell import command_line
from atomtune.shipped import IMAGES
from atomtune.storage.folders import load_adapter
from atomtune.storage.reading import adapter_info
from atomtune.training import data, encoding, outcome, steps, trainer
from atomtune.training.objectives import objective_for
from atomtune.training.subjects import Shown

TEAPOTS = IMAGES / "teapot"


def test_the_held_losses_are_those_of_the_base_and_of_the_saved_adapter(run, base, images, tmp_path):
    summary = run(learning_rate=0.05, steps=6)
    pipe = load_base(base)
    squares = [data.fitted(data.read_image(file), 64) for file in sorted(images.iterdir())]
    latents, conditioning = encoding.encode_images(pipe, squares), encoding.encode_caption(pipe, "a sks dog", 64)
    generator = steps._generator(0, steps.HELD)
    drawn = latents.draw([0, 1, 2] * 8, generator)
    noised = objective_for(pipe.scheduler).add_noise(drawn, generator)

    def plain() -> float:
        with torch.no_grad():
            batch = encoding.collate([conditioning] * 24, FAMILIES[0])
            output = denoiser(pipe)(noised.noisy, timestep=noised.timesteps, **batch, return_dict=False)[0]
        return float((output[:, :4].double() - noised.target.double()).square().mean())

    assert summary["held_loss_before"] == pytest.approx(plain(), abs=1e-5)
    load_adapter(pipe, tmp_path / "run")
    assert summary["held_loss"] == pytest.approx(plain(), abs=1e-5) != summary["held_loss_before"]


def test_measuring_changes_neither_the_random_state_nor_the_adapter(run, tmp_path, monkeypatch):
    held = trainer.Trainer._held_losses

    def twice(self):
        before = torch.get_rng_state()
        values = {name: value.clone() for name, value in self.model.state_dict().items()}
        first, second = held(self), held(self)
        assert first == second and torch.equal(before, torch.get_rng_state()) and self.model.training
        assert all(torch.equal(value, values[name]) for name, value in self.model.state_dict().items())
        return first

    monkeypatch.setattr(trainer.Trainer, "_held_losses", twice)
    summary = run(activation="batch_topk")
    last = tmp_path / "run" / "checkpoints" / "step-000004" / "adapter" / "adapter_model.safetensors"
    saved = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    assert all(torch.equal(tensor, saved[name]) for name, tensor in load_file(last).items())
    assert {"held_loss", "held_loss_before"} <= summary.keys()


@pytest.mark.parametrize("method", ["lora", "oft"])
def test_every_method_says_how_well_it_learnt(run, method):
    summary = run(method=method, learning_rate=0.01)
    assert 0 < summary["held_loss"] != summary["held_loss_before"] and "fidelity" not in summary


def test_the_default_samples_show_the_subject_and_the_next_command_another_prompt(run, base, tmp_path):
    summary = run()
    prompts = [read_settings(file)["prompt"] for file in summary["samples"]]
    assert prompts == ["a sks dog", "a sks dog in the snow"]
    out = tmp_path / "run"
    assert summary["next_command"] == command_line("generate", out, "--prompt", "a sks dog on the beach", "--num", 4)
    assert 'atomtune.generate(pipe, "a sks dog")' in (out / "adapter" / "README.md").read_text()


def test_a_caption_without_the_token_is_its_own_prompt(run):
    (sample,) = run(caption="a dog on the snow")["samples"]
    assert read_settings(sample)["prompt"] == "a dog on the snow"


def test_on_moji_samples_name_clear_backgrounds_and_the_judge_scores_them(tmp_path, monkeypatch):
    monkeypatch.setattr("atomtune.moji.load", lambda *args: random_pipeline())
    options = {"steps": 1, "preserve": False, "floor": 0.0}
    summary = atomtune.customize(TEAPOTS, class_name="teapot", out=tmp_path / "run", **options)
    prompts = [read_settings(file)["prompt"] for file in summary["samples"]]
    assert prompts == ["a sks teapot on a white background", "a sks teapot on a yellow background"]
    assert "'a sks teapot on an orange background'" in summary["next_command"]
    images, references = map(
        list, (map(data.read_image, map(Path, summary["samples"])), map(data.read_image, TEAPOTS.glob("*.png")))
    )
    judge = metrics.load_judge()
    assert summary["fidelity"] == pytest.approx(judge.fidelity(images, references).mean(), abs=1e-3)
    plain = [prompt.replace("sks ", "") for prompt in prompts]
    assert summary["alignment"] == pytest.approx(judge.alignment(images, plain).mean(), abs=1e-3)
    assert adapter_info(tmp_path / "run").metadata["backgrounds"][:3] == ["white", "yellow", "orange"]


def test_the_sheet_has_the_images_and_each_prompts_samples_by_step(tmp_path):
    colours = {step: (step, 0, 0) for step in range(10, 110, 10)}
    for step, colour in colours.items():
        for number, prompt in enumerate(("a", "b" if step > 50 else "earlier")):
            file = tmp_path / "samples" / f"step-{step:06d}-{number}.png"
            manifest.record(tmp_path, file)
            save_png(Image.new("RGB", (64, 64), colour), file, {"prompt": prompt, "step": step})
    (tmp_path / "samples" / "step-mine.png").write_text("not a sample")
    last = [str(tmp_path / "samples" / f"step-000100-{number}.png") for number in (0, 1)]
    shown = Shown((Subject("sks", "dog"),), (0, 0), (1, 1))
    sheet = np.asarray(outcome.contact_sheet(tmp_path, shown, [Image.new("RGB", (2000, 2000), "blue")] * 2, last))
    rows = [[*dict.fromkeys(map(tuple, sheet[y, 160:].tolist()))] for y in (128, 400, 660)]
    reds = [[r for r, g, b in row if r < 255 and g == b == 0] for row in rows]
    assert (0, 0, 255) in rows[0]
    assert reds[1:] == [[20, 40, 60, 80, 100], [60, 70, 80, 90, 100]]
    assert sheet.shape[0] < 3 * 270  # large images are scaled down


def test_the_command_line_prints_it_and_the_library_does_not(run, base, images, tmp_path, capsys):
    run("library", steps=2)
    assert capsys.readouterr().out == ""
    out = tmp_path / "run"
    words = ["customize", images, "--class-name", "dog", "--steps", 2, "--base", base, "--out", out]
    main([str(word) for word in words])
    lines = capsys.readouterr().out.splitlines()
    assert lines == outcome.told(json.loads((out / "summary.json").read_text()), out)
    assert lines[0] == f"The adapter is in {out / 'adapter'}, and its samples are on {out / 'samples.png'}."
    assert lines[1].startswith("How well it learnt: loss on noise that was not trained on ")
    assert lines[-1].startswith(f"Now try: {command_line('generate', out, '--prompt')}")
    main([str(word) for word in words])  # finished: the same again
    assert capsys.readouterr().out.splitlines() == lines


LITTLE = {"fidelity": 0.1, "alignment": 0.3, "held_loss": 0.2, "held_loss_before": 0.3, "steps": 20}


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({}, "(fidelity is below 0.5): more steps help, "),
        ({"fidelity": 0.8, "held_loss": 0.29}, "(the loss fell by less than 5%): more steps help, "),
        ({"misfits": ["the images do not fit."]}, "(fidelity is below 0.5): the images do not fit."),
        ({"fidelity": 0.8}, None),
    ],
)
def test_a_run_that_learnt_little_says_so_and_what_helps(change, why):
    lines = outcome.told(LITTLE | change, Path("run"))
    said = [line.removeprefix("It learnt little ") for line in lines if line.startswith("It learnt little")]
    assert bool(said) == bool(why)
    if why:
        assert said[0].startswith(why)
    if why and "more steps" in why:
        assert command_line("customize", "--config", "run/config.yaml", "--out", "run", "--steps", 40) in said[0]


def test_the_numbers_of_an_older_run_are_enough(tmp_path):
    assert outcome.told({"steps": 3, "loss": 0.1}, tmp_path) == [f"The adapter is in {tmp_path / 'adapter'}."]


def test_a_run_that_was_moved_says_commands_for_its_new_place(run, tmp_path):
    run()
    (tmp_path / "run").rename(tmp_path / "moved")
    summary = run(out=tmp_path / "moved")
    assert str(tmp_path / "moved") in summary["next_command"] and str(tmp_path / "run") not in summary["next_command"]
    little = {"steps": 4, "held_loss": 1.0, "held_loss_before": 1.0}
    again = next(line for line in outcome.told(little, tmp_path / "moved") if "goes on" in line)
    assert f"--out {tmp_path / 'moved'}" in again  # config.yaml names the old place
