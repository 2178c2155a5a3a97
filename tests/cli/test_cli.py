"""The command line on a small PixArt-Σ folder: options, where they come from, and what is said when they are wrong."""

import json
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from safetensors.torch import load_file

from atomtune import sampling
from atomtune.cli import app, main, parsed
from atomtune.errors import UserError
from atomtune.files import read_prompts
from atomtune.sampling import read_settings
from atomtune.storage.metadata import WEIGHTS_FILE, write_weights
from atomtune.storage.reading import adapter_info
from atomtune.training import load_recipe
from tests.tiny_pixart import save_tiny_pixart


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    for name in ("a", "b"):
        Image.fromarray(random.integers(0, 255, (64, 80, 3), dtype=np.uint8)).save(folder / f"{name}.png")
    return folder


@pytest.fixture(scope="module")
def run(base, images, tmp_path_factory):
    """A finished run, by the command line, with options from a file and from flags."""
    out = tmp_path_factory.mktemp("runs") / "dog"
    config = out.with_suffix(".yaml")
    options = {
        "class_name": "cat",
        "steps": 9,
        "num_atoms": 8,
        "density": 0.5,
        "optimizer_options": {"weight_decay": 0.1},
    }
    config.write_text(yaml.safe_dump({**options, "base": base, "target_modules": ["attn1"], "seed": 3}))
    main(["customize", str(images), "--config", str(config), "--class-name", "dog", "--steps", "2", "--out", str(out)])
    return out


def said(capsys, *arguments: object) -> str:
    """What is printed on stderr by a command that the user got wrong: one line, and exit code 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert error.startswith("atomtune: ") and error.count("\n") == 1, error
    return error.removeprefix("atomtune: ")


def test_flags_win_over_the_file_which_wins_over_the_defaults(run):
    resolved = yaml.safe_load((run / "config.yaml").read_text())
    assert (resolved["class_name"], resolved["steps"]) == ("dog", 2)  # flags
    assert (resolved["num_atoms"], resolved["density"], resolved["seed"]) == (8, 0.5, 3)  # the file
    assert resolved["optimizer_options"] == {"weight_decay": 0.1}
    assert (resolved["token"], resolved["batch_size"]) == ("sks", 1)  # defaults
    assert json.loads((run / "summary.json").read_text())["steps"] == 2


def test_the_resolved_config_says_the_same_run_again(run, capsys):
    main(["customize", "--config", str(run / "config.yaml"), "--overwrite"])
    again = yaml.safe_load((run / "config.yaml").read_text())
    main(["customize", "--config", str(run / "config.yaml"), "--no-overwrite"])  # finished: nothing to do
    assert again | {"overwrite": False} == yaml.safe_load((run / "config.yaml").read_text()) | {"overwrite": False}


def bound(*tokens: str):
    """The configuration that a `customize` command line resolves to, without running it."""
    from atomtune.cli.customize import shipped_recipe

    app.config = (shipped_recipe,)
    _, arguments, _ = app.parse_args(["customize", *tokens], exit_on_error=False, print_error=False)
    return arguments.args[0] if arguments.args else arguments.kwargs["config"]


def test_the_recipe_of_the_base_says_what_nobody_else_does():
    common = ("images", "--class-name", "dog", "--out", "out")
    moji = load_recipe("moji")
    assert (bound(*common).learning_rate, bound(*common).steps) == (moji["learning_rate"], moji["steps"])
    assert bound(*common, "--learning-rate", "0.5").learning_rate == 0.5
    assert (bound(*common, "--epochs", "3").steps, bound(*common, "--epochs", "3").epochs) == (None, 3)
    assert bound(*common, "--base", "elsewhere").learning_rate == 1e-4
    few = bound(*common, "--total-atoms", "24")
    assert (few.total_atoms, few.learning_rate) == (24, load_recipe("moji-few-atoms")["learning_rate"])
    lora = bound(*common, "--method", "lora")
    assert (lora.preserve, lora.floor, lora.target_modules) == (True, 0.0, ("attn1", "attn2"))
    assert bound(*common).floor == moji["floor"]
    for off in ("--no-preserve", "--preserve=false"):
        assert (bound(*common, off).preserve, bound(*common, off).floor) == (False, 0.0)


def test_generate(run, tmp_path, capsys):
    (tmp_path / "prompts.txt").write_text("a dog on the snow\n\n a cat \n")
    options = ["--steps", 2, "--num", 2, "--seed", 5, "--density", 0.25, "--scale", 0.5, "--out", tmp_path / "out"]
    main(
        [
            str(x)
            for x in ["generate", run, "--prompt", "a sks dog", "--prompts-file", tmp_path / "prompts.txt", *options]
        ]
    )
    assert "6 images in" in capsys.readouterr().out
    files = sorted(file.name for file in (tmp_path / "out").iterdir())
    assert len(files) == 7 and files[0].startswith("000-a-sks-dog-seed5-") and files[5].startswith("005-a-cat-seed6-")
    assert files[6].startswith("grid-")
    settings = read_settings(tmp_path / "out" / files[0])
    assert settings["prompt"] == "a sks dog" and settings["seed"] == 5 and settings["steps"] == 2
    assert settings["density"] == 0.25 and settings["scale"] == 0.5 and settings["adapter"] == str(run)


def test_other_settings_never_overwrite_what_was_drawn(run, tmp_path):
    out = tmp_path / "out"

    def draw(*options: str) -> dict[str, int]:
        steps = () if "--steps" in options else ("--steps", "1")
        main(["generate", str(run), "--prompt", "a dog", "--num", "2", *steps, "--out", str(out), *options])
        return {file.name: file.stat().st_mtime_ns for file in out.iterdir()}

    found = draw()
    (out / "preset.json").write_text('{"gain": {}}')
    assert len(found) == 3
    for number, options in enumerate(
        [("--scale", "0.5"), ("--density", "0.25"), ("--steps", "2"), ("--guidance-scale", "2"), ("--resolution", "32"),
         ("--negative-prompt", "snow"), ("--dtype", "bfloat16"), ("--preset", str(out / "preset.json"))],
        start=2,
    ):  # fmt: skip
        now = draw(*options)
        assert len([name for name in now if name.endswith(".png")]) == 3 * number
        assert all(now[name] == found[name] for name in found)
        found = now


def test_the_same_command_draws_what_is_missing(run, tmp_path, capsys):
    command = ["generate", str(run), "--prompt", "a dog", "--num", "3", "--steps", "1", "--out", str(tmp_path / "out")]
    main(command)
    files = sorted((tmp_path / "out").glob("0*.png"))
    before = [(file.read_bytes(), file.stat().st_mtime_ns) for file in files]
    files[1].unlink()
    capsys.readouterr()
    main(command)
    assert "3 images" in (said := capsys.readouterr().out) and "2 of them had been drawn before" in said
    after = [(file.read_bytes(), file.stat().st_mtime_ns) for file in files]
    assert (after[0], after[2]) == (before[0], before[2]) and after[1] != before[1]


def test_an_interrupted_generate_keeps_what_it_drew_and_says_how_to_go_on(run, tmp_path, capsys, monkeypatch):
    out, save = tmp_path / "out", sampling.save_png

    def interrupted(*arguments):
        if len(list(out.glob("*.png"))) == 2:
            raise KeyboardInterrupt
        save(*arguments)

    monkeypatch.setattr(sampling, "save_png", interrupted)
    with pytest.raises(SystemExit) as stop:
        main(["generate", str(run), "--prompt", "a dog", "--num", "4", "--steps", "1", "--out", str(out)])
    assert stop.value.code == 130
    assert f"2 of 4 images are in {out}: the same command draws the others" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("kind", [RuntimeError, UserError, TypeError])
def test_a_command_that_is_stopped_is_stopped_whatever_the_interrupt_became(
    run, tmp_path, capsys, monkeypatch, number, kind
):
    """Python 3.11 wraps what is raised while a class is made, diffusers what an import raises, and PyTorch's C++ says
    that it "could not determine the shape of object type", which looked like a base that cannot be opened."""
    usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
    before = signal.signal(number, usual)  # a shell lets what it starts in the background ignore Ctrl-C

    def working(*arguments):
        try:
            signal.raise_signal(number)
        except KeyboardInterrupt:
            raise kind("could not be opened") from None

    monkeypatch.setattr(sampling, "save_png", working)
    try:
        with pytest.raises(SystemExit) as stop:
            main(["generate", str(run), "--prompt", "a dog", "--steps", "1", "--out", str(tmp_path / "out")])
        assert signal.getsignal(number) is usual
    finally:
        signal.signal(number, before)
    said = capsys.readouterr().err
    assert stop.value.code == 130 and "Traceback" not in said and "opened" not in said


def drawn(out) -> np.ndarray:
    return np.asarray(Image.open(next(out.glob("000-*.png"))), dtype=int)


def test_scale_and_density_act_while_sampling(run, base, tmp_path):
    common = ["--prompt", "a sks dog", "--steps", "2"]

    def draw(name: str, *options: object) -> np.ndarray:
        main(["generate", *map(str, options), *common, "--out", str(tmp_path / name)])
        return drawn(tmp_path / name)

    frozen, adapted = draw("base", "--base", base), draw("adapted", run)
    assert (draw("again", run / "adapter") == adapted).all()
    assert abs(draw("off", run, "--scale", 0) - frozen).max() <= 1  # the attention call is another one: the last bit
    loud = draw("loud", run, "--scale", 300)
    assert abs(loud - frozen).max() > 3
    assert (draw("fewer", run, "--scale", 300, "--density", 0.125) != loud).any()


def test_prune_and_train_on(run, tmp_path, capsys):
    def numbers(folder):
        return {name: tensor.clone() for name, tensor in load_file(folder / "adapter_model.safetensors").items()}

    main(["prune", str(run), "--keep", "3", "--by", "energy", "--out", str(tmp_path / "small")])
    printed = capsys.readouterr().out
    assert "3 of 16 atoms" in printed and "C_i" not in printed
    small, full = numbers(tmp_path / "small" / "adapter"), numbers(run / "adapter")
    assert sum(tensor.numel() for name, tensor in small.items() if "weight" in name) == 96
    assert "Pruned to 3 of 16 atoms, by energy" in (tmp_path / "small" / "adapter" / "README.md").read_text()
    for name in (name for name in small if name.endswith("atoms_id")):  # the same atoms under the same numbers
        D = name.replace("atoms_id", "atoms_decoder.weight")
        assert (small[D] == full[D][small[name]]).all()
    main(["prune", str(run), "--keep-per-layer", "2", "--finetune-steps", "2", "--out", str(tmp_path / "tuned")])
    assert (
        "by gradient" in (tmp_path / "tuned" / "pruned" / "adapter" / "README.md").read_text()
    )  # the images are there
    before, after = (numbers(tmp_path / "tuned" / name) for name in ("pruned/adapter", "adapter"))
    assert before.keys() == after.keys() and len(before["base_model.model.transformer_blocks.0.attn1.atoms_id"]) == 2
    assert all((before[name] != after[name]).any() for name in before if "weight" in name)
    assert yaml.safe_load((tmp_path / "tuned" / "config.yaml").read_text())["seed"] == 3  # the run's own settings
    main(["generate", str(tmp_path / "tuned"), "--prompt", "a sks dog", "--steps", "1", "--out", str(tmp_path / "out")])
    assert "already" in said(capsys, "prune", run, "--keep", "3", "--out", tmp_path / "small")
    lonely = shutil.copytree(run / "adapter", tmp_path / "lonely")
    alone = ("prune", lonely, "--keep", "2", "--by", "gradient", "--out", tmp_path / "smaller")
    assert "--by gradient needs the run that" in said(capsys, *alone)
    assert "give --keep, from 1 to 16" in said(capsys, "prune", lonely, "--out", tmp_path / "smaller")
    older = shutil.copytree(run / "adapter", tmp_path / "older" / "adapter").parent
    (older / "config.yaml").write_text("pictures: photos\nclass_name: dog\nout: out\n")
    alone = ("prune", older, "--keep", "2", "--by", "gradient", "--out", tmp_path / "smaller")
    assert "and no config.yaml of this version names the images of" in said(capsys, *alone)


def test_distill(base, images, tmp_path, capsys):
    lora, atoms = tmp_path / "lora", tmp_path / "atoms"
    options = ("--class-name", "dog", "--base", base, "--steps", "2", "--report-to", "none")
    main([str(x) for x in ("customize", images, "--method", "lora", "--rank", "2", *options, "--out", lora)])
    few = ("--steps", "3", "--tokens", "60", "--num", "1", "--sampling-steps", "1")
    main([str(x) for x in ("distill", lora, "--num-atoms", "4", "--density", "0.5", *few, "--out", atoms)])
    assert "of what the LoRA adds, over 8 layers" in capsys.readouterr().out
    config = json.loads((atoms / "adapter" / "adapter_config.json").read_text())
    assert (config["peft_type"], config["num_atoms"], adapter_info(atoms).metadata["token"]) == ("ATOMS", 4, "sks")
    main(["generate", str(atoms), "--prompt", "a sks dog", "--steps", "1", "--out", str(tmp_path / "out")])
    assert "--num-atoms must be at least 1" in said(capsys, "distill", lora, "--num-atoms", "0", "--out", atoms)
    assert "could not be read" in said(capsys, "distill", tmp_path / "none", "--base", base, "--out", tmp_path / "new")


@pytest.mark.parametrize(
    "command", ["customize", "generate", "inspect", "prune", "merge", "compare", "distill", "edit"]
)
def test_every_command_opens_a_base_by_the_same_flags(command):
    names = {name for argument in app[command].assemble_argument_collection() for name in argument.names}
    assert {"--base", "--dtype", "--device"} <= names


WITH_AN_ADAPTER = {
    "generate": ["generate", "{adapter}", "--prompt", "x"],
    "inspect": ["inspect", "{adapter}"],
    "inspect against": ["inspect", "{run}", "--against", "{adapter}"],
    "prune": ["prune", "{adapter}", "--keep", "3", "--out", "{out}"],
    "merge": ["merge", "{run}", "{adapter}", "--out", "{out}"],
    "merge report": ["merge", "{run}", "{adapter}", "--report"],
    "compare": ["compare", "{run}", "{adapter}", "--out", "{out}"],
    "customize": ["customize", "{images}", "--class-name", "x", "--init-adapter", "{adapter}", "--out", "{out}"],
    "distill": ["distill", "{adapter}", "--prompt", "x", "--out", "{out}"],
}


@pytest.mark.parametrize("command", WITH_AN_ADAPTER)
def test_every_command_says_the_same_of_a_missing_and_a_broken_adapter_before_it_opens_a_base(
    command, run, images, tmp_path, capsys
):
    (tmp_path / "empty").mkdir()
    broken = shutil.copytree(run / "adapter", tmp_path / "broken")
    weights = broken / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    sentences = {"empty": "there is no adapter in '", "broken": "the weights in '"}
    for name, sentence in sentences.items():
        places = {"adapter": tmp_path / name, "run": run, "images": images, "out": tmp_path / "out"}
        arguments = [argument.format(**places) for argument in WITH_AN_ADAPTER[command]]
        assert said(capsys, *arguments, "--base", "no such base").startswith(f"{sentence}{tmp_path / name}")


def test_adapters_of_different_bases_are_not_compared_and_no_base_is_opened(run, tmp_path, capsys):
    other = shutil.copytree(run / "adapter", tmp_path / "other")
    metadata = adapter_info(other).metadata
    metadata["base_fingerprint"] = [1.0] * len(metadata["base_fingerprint"])
    write_weights(other, load_file(other / WEIGHTS_FILE), metadata)
    for arguments in (["merge", run, other, "--report"], ["compare", run, other], ["inspect", run, "--against", other]):
        assert "were trained on different bases" in said(capsys, *arguments, "--base", "no such base")


RUN = ("--class-name", "x", "--out", "{empty}/out")
WRONG = {
    "unknown option": (["generate", "--promt", "x"], "--promt"),
    "no prompt": (["generate", "{run}"], "nothing to draw"),
    "no adapter there": (["generate", "{empty}", "--prompt", "x"], "there is no adapter in '{empty}'"),
    "density of 4": (["generate", "{run}", "--prompt", "x", "--density", "4"], "density must be in (0, 1], got 4"),
    "floor of 2": (["generate", "{run}", "--prompt", "x", "--floor", "2"], "floor must be from 0"),
    "density without adapter": (["generate", "--prompt", "x", "--density", "0.1"], "--density needs an adapter"),
    "negative steps": (["generate", "{run}", "--prompt", "x", "--steps", "-3"], "steps must be at least 1, got -3"),
    "offload on a CPU": (
        ["generate", "{run}", "--prompt", "x", "--offload", "model", "--device", "cpu"],
        "the device is cpu: leave it out",
    ),
    "nf4 on a CPU": (
        ["generate", "--prompt", "x", "--quantize", "nf4", "--base", "{run}", "--device", "cpu"],
        "nf4 needs a CUDA or XPU card, and the device is cpu",
    ),
    "no images": (["generate", "{run}", "--prompt", "x", "--num", "0"], "num must be at least 1, got 0"),
    "prompts file": (["generate", "{run}", "--prompts-file", "{empty}/none.txt"], "none.txt could not be read"),
    "unknown base": (["generate", "--base", "{empty}", "--prompt", "x"], "there is no base model '{empty}'"),
    "prune twice": (
        ["prune", "{run}", "--keep", "2", "--keep-per-layer", "2", "--out", "{empty}/o"], "give one of --keep and"
    ),
    "prune to none": (["prune", "{run}", "--keep", "0", "--out", "{empty}/out"], "must be from 1 to 16"),
    "prune to more": (["prune", "{run}", "--keep", "5000", "--out", "{empty}/out"], "must be from 1 to 16, the atoms"),
    "prune to more in a layer": (
        ["prune", "{run}", "--keep-per-layer", "9", "--out", "{empty}/o"], "must be from 1 to 8, the atoms"
    ),
    "prune with what": (["prune", "{run}", "--keep", "3", "--by", "luck", "--out", "{empty}/out"], "luck"),
    "seed beyond 64 bits": (["generate", "--prompt", "x", "--seed", "1" + "0" * 20], "seed must be a whole number"),
    "seed of a run": (["customize", "{images}", *RUN, "--seed", "1" + "0" * 20], "seed must be a whole number"),
    "seed of edit": (["edit", "{images}/a.png", "--prompt", "x", "--out", "{empty}/o", "--seed", "-1"], "seed"),
    "seed of inspect": (["inspect", "{run}", "--seed", "-1"], "must be a whole number"),
    "seed of demo": (["demo", "--seed", "-1", "--out", "{empty}/o"], "must be a whole number"),
    "seed of a report": (["merge", "{run}", "{run}", "--report", "--seed", "-1"], "must be a whole number"),
    "seed of distill": (["distill", "{run}", "--out", "{empty}/o", "--seed", "-1"], "must be a whole number"),
    "distill atoms": (["distill", "{run}", "--out", "{empty}/o", "--prompt", "x"], "method ATOMS: distill takes"),
    "training resolution": (
        ["customize", "{images}", *RUN, "--base", "{base}", "--resolution", "70"], "must be a multiple of"
    ),
    "init of nothing": (
        ["customize", "{images}", *RUN, "--init-adapter", "{empty}", "--base", "{base}"],
        "there is no adapter in '{empty}'",
    ),
    "init of another method": (
        ["customize", "{images}", *RUN, "--init-adapter", "{run}", "--method", "lora", "--base", "{base}"],
        "is ATOMS, and the run is of method lora: give the method",
    ),
    "prune into its run": (["prune", "{run}", "--keep", "3", "--out", "{run}"], "contains the input"),
    "prune around its run": (["prune", "{run}", "--keep", "3", "--out", "{run}/.."], "contains the input"),
    "distill into its LoRA": (["distill", "{run}", "--prompt", "x", "--out", "{run}"], "contains the input"),
    "merge into an input": (["merge", "{run}", "{run}", "--out", "{run}/adapter"], "contains the input"),
    "images in the output": (["customize", "{images}", "--class-name", "x", "--out", "{images}"], "contains the"),
    "base in the output": (["customize", "{images}", *RUN[:2], "--base", "{base}", "--out", "{base}/.."], "contains"),
    "a file as the output": (["generate", "{run}", "--prompt", "x", "--out", "{run}/config.yaml"], "is a file"),
    "a file to customize into": (
        ["customize", "{images}", *RUN[:2], "--base", "{empty}", "--out", "{run}/config.yaml"], "is a file"
    ),
    "a file to edit into": (
        ["edit", "{images}/a.png", "--prompt", "x", "--base", "{empty}", "--out", "{run}/config.yaml"], "is a file"
    ),
    "a file to prune into": (["prune", "{run}", "--keep", "3", "--out", "{run}/config.yaml"], "is a file"),
    "a file to merge into": (["merge", "{run}", "{run}", "--out", "{run}/config.yaml"], "is a file"),
    "a file to distill into": (["distill", "{run}", "--prompt", "x", "--out", "{run}/config.yaml"], "is a file"),
    "a file for the demo": (["demo", "--out", "{run}/config.yaml"], "is a file"),
    "distill over a run": (["distill", "{empty}", "--prompt", "x", "--out", "{run}"], "holds an adapter already"),
    "compare nothing": (["compare"], "there is nothing to compare"),
    "compare no images": (["compare", "{run}", "--num", "0"], "--num must be at least 1, got 0"),
    "compare what": (["compare", "{run}", "--metrics", "dino,luck", "--out", "{empty}/o"], "no metric 'luck': choose"),
    "compare features": (["compare", "{run}", "--metrics", "vendi", "--out", "{empty}/o"], "name clip or dino too"),
    "compare without a model": (
        ["compare", "{run}", "--metrics", "clip", "--clip-model", "{empty}", "--out", "{empty}/o"],
        "{empty} could not be loaded as a CLIPModel",
    ),
    "a file to compare into": (["compare", "{run}", "--out", "{run}/config.yaml"], "is a file"),
    "config not there": (["customize", "{empty}", "--config", "none.yaml"], "'none.yaml' could not be read"),
    "unknown key": (["customize", "{empty}", "--config", "{empty}/../typo.yaml"], "[stpes]"),
    "missing class": (["customize", "{images}", "--out", "{empty}/out"], "--class-name"),
    "training density": (["customize", "{images}", *RUN, "--density", "4"], "0.04"),
    "training steps": (["customize", "{images}", *RUN, "--steps", "-1"], "steps"),
    "not a number": (["customize", "{images}", *RUN, "--steps", "x"], "--steps"),
    "empty folder": (["customize", "{empty}", "--class-name", "x", "--out", "{empty}/../out"], "{empty}"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_one_clear_sentence(case, capsys, tmp_path, run, images, base):
    empty = tmp_path / "empty"
    empty.mkdir()
    (tmp_path / "typo.yaml").write_text("stpes: 3\nclass_name: x\nout: y")
    places = {"empty": empty, "run": run, "images": images, "base": base}
    arguments, expected = WRONG[case]
    assert expected.format(**places) in said(capsys, *(argument.format(**places) for argument in arguments))
    assert not list(empty.iterdir()) and not (tmp_path / "out").exists()  # nothing half-written


OPENING = {
    "customize": ["{images}", *RUN, "--base", "{base}"],
    "generate": ["{run}", "--prompt", "x"],
    "prune": ["{run}", "--keep", "3", "--out", "{empty}/out"],
    "inspect": ["{run}"],
    "merge": ["{run}", "{run}", "--report"],
    "compare": ["{run}", "--out", "{empty}/out"],
    "distill": ["{lora}", "--out", "{empty}/out"],
    "edit": ["{images}/a.png", "--prompt", "x", "--out", "{empty}/out", "--base", "{base}"],
    "demo": ["--out", "{empty}/out"],
}


@pytest.fixture(scope="module")
def lora(base, images, tmp_path_factory):
    out = tmp_path_factory.mktemp("lora") / "run"
    options = ["--class-name", "dog", "--steps", "1", "--base", base, "--method", "lora", "--rank", "2", "--out", out]
    main([str(word) for word in ("customize", images, *options)])
    return out


@pytest.mark.parametrize("command", OPENING)
def test_every_command_that_opens_a_base_takes_a_device_and_a_precision(
    command, capsys, tmp_path, run, lora, images, base
):
    places = {"empty": tmp_path, "run": run, "lora": lora, "images": images, "base": base}
    arguments = [argument.format(**places) for argument in OPENING[command]]
    assert "there is no device 'banana' here" in said(capsys, command, *arguments, "--device", "banana")
    assert "--dtype" in said(capsys, command, *arguments, "--dtype", "int3")
    assert not (tmp_path / "out").exists()


def test_the_precision_of_a_run_has_two_spellings_and_is_recorded_as_it_came_to(base, images, tmp_path):
    short = bound("images", "--class-name", "dog", "--out", "out", "--dtype", "bfloat16")
    assert short == bound("images", "--class-name", "dog", "--out", "out", "--mixed-precision", "bf16")
    options = ["--class-name", "dog", "--steps", "1", "--base", base, "--out", tmp_path / "run", "--device", "cpu"]
    main([str(word) for word in ("customize", images, *options)])
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["mixed_precision"] == "no"
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["dtype"], summary["device"]) == ("float32", "cpu")


def test_an_adapter_of_another_base_names_both(base, run, capsys, tmp_path):
    other = save_tiny_pixart(tmp_path / "other", seed=1)
    sentence = said(capsys, "generate", run, "--base", other, "--prompt", "x")
    assert base in sentence and str(other) in sentence


def test_density_is_refused_for_other_methods(base, images, lora, tmp_path, capsys):
    common = ["--base", base, "--class-name", "dog", "--steps", "1", "--method", "oft"]
    main(["customize", str(images), *common, "--out", str(tmp_path / "oft")])
    draw = ("--prompt", "x", "--steps", "1")
    unopened = (*draw, "--base", "no such base")
    assert "method LORA: --density belongs to atoms" in said(capsys, "generate", lora, *unopened, "--density", "0.5")
    assert "--scale does not apply to OFT" in said(capsys, "generate", tmp_path / "oft", *unopened, "--scale", "0.5")
    main(["generate", str(lora), *draw, "--scale", "0.5"])
    assert list((lora / "generated").glob("grid-*.png"))


COMMANDS = {  # each with all of its text options, as values that begin with a dash
    "customize": ["p", "--out", "~/o", "--class-name", "-1girl", "--token", "-t", "--caption", "-c", "--license", "-l",
                  "--sample-prompts", "-a, b", "--sample-prompts=-c", "--class-prompt", "-d"],
    "generate": ["~/a", "--prompt", "-1girl, solo", "--negative-prompt", "-y",
                 "--prompt=-x", "--prompts-file=~/p", "--preset=~/q", "--out=~/o"],
    "edit": ["~/a.png", "--prompt", "-1girl", "--source-prompt", "-x", "--out=~/o"],
    "distill": ["~/a", "--prompt", "-1girl", "--prompt", "-x", "--out=~/o", "--prompts-file=~/p"],
    "merge": ["~/a", "~/b", "--weights", "-1,0.5", "--out=~/o", "--prompts-file", "~/p"],
    "inspect": ["~/a", "--prompts", "~/p", "--out=~/o", "--against", "~/b"],
    "prune": ["~/a", "--keep", "1", "--out=~/o"],
    "demo": ["--out=~/o"],
}  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_values_may_begin_with_a_dash_and_a_tilde_is_the_home_folder(command, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    app.config = ()
    _, args, kwargs = parsed([command, *COMMANDS[command]])
    given = [*args, *kwargs.values()]
    values = [*given, *vars(given[0]).values()] if command == "customize" else given
    flat = [item for value in values for item in (value if isinstance(value, list | tuple) else [value])]
    paths = [str(item) for item in flat if isinstance(item, Path)]
    assert paths and not any("~" in path for path in paths)
    dashed = [word.removeprefix("--sample-prompts=").removeprefix("--prompt=") for word in COMMANDS[command]]
    assert [word for word in dashed if word.startswith("-") and not word.startswith("--") and word not in flat] == []


def test_what_is_passed_over_is_seen_on_the_command_line(tmp_path, images):
    folder = shutil.copytree(images, tmp_path / "p")
    (folder / "orphan.txt").write_text("x")
    words = ["customize", str(folder), "--class-name", "dog", "--out", str(tmp_path / "o"), "--base", str(tmp_path)]
    done = subprocess.run([sys.executable, "-m", "atomtune", *words], capture_output=True, text=True)
    assert done.returncode == 2
    assert f"{folder}: there is no image for the captions orphan.txt\n" in done.stderr


def test_prompts_files_of_any_editor(tmp_path):
    file = tmp_path / "p.txt"
    file.write_bytes("\ufeffa cat\r\n\r\na\u2028dog\na\x85fish \n".encode())
    assert read_prompts(file) == ["a cat", "a\u2028dog", "a\x85fish"]


def test_as_a_program():
    done = subprocess.run([sys.executable, "-m", "atomtune", "generate"], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("atomtune: there is nothing to draw") and not done.stdout


def test_a_reader_that_stops_early_sees_no_traceback():
    command = f"{shlex.quote(sys.executable)} -u -m atomtune recipes | head -n 1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert done.stdout == "moji\n" and done.stderr == ""
