"""Two real processes train one adapter, as on two GPUs."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file
from torch.testing import assert_close

import atomtune
from atomtune.sampling import read_image, read_settings
from atomtune.training import run as run_module
from atomtune.training.trainer import Trainer

FSDP2 = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
DEEPSPEED = str(Path(sys.prefix) / "deepspeed")
"""The folder of DeepSpeed, if it is not among the other packages."""
ZERO3 = {
    "ACCELERATE_USE_DEEPSPEED": "true",
    "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(Path(__file__).with_name("zero3.json")),
    "PYTHONPATH": os.pathsep.join(filter(None, [DEEPSPEED, os.environ.get("PYTHONPATH")])),
}
WAYS = {"whole": {}, "fsdp2": FSDP2, "zero3": ZERO3}
MISSING = set() if find_spec("deepspeed") or Path(DEEPSPEED, "deepspeed").is_dir() else {"zero3"}


def launch(processes: int, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    """Start a script or a module in `processes` processes by `accelerate launch`, as the how-to says."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(processes)]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    everywhere = os.environ | {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"} | environment
    return subprocess.Popen(
        [*command, *arguments], env=everywhere, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def start(processes: int, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    """`atomtune customize` in `processes` processes."""
    return launch(processes, "-m", "atomtune", "customize", *arguments, **environment)


def finish(process: subprocess.Popen[str]) -> None:
    """Wait for its end, which should be a good one."""
    said = process.communicate()[1]
    assert process.returncode == 0, said


def train(processes: int, *arguments: str) -> None:
    """`atomtune customize` in `processes` processes, to the end."""
    finish(start(processes, *arguments))


def processes_of(rank: int, out: Path) -> list[int]:
    """Ids of the processes of this rank that train into `out`."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it may end while we look, or not be ours
            command, environment = ((folder / name).read_bytes().split(b"\0") for name in ("cmdline", "environ"))
            if str(out).encode() in command and f"RANK={rank}".encode() in environment:
                found.append(int(folder.name))
    return found


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_at_one_step_and_they_continue_to_the_same_bits(base, images, tmp_path):
    options = ["--class-name", "dog", "--base", base, "--num-atoms", "8", "--checkpoint-every", "1000"]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    train(2, str(images), "--out", str(whole), *options, "--steps", "12", "--sample-every", "0")

    arguments = [str(images), "--out", str(stopped), *options, "--steps", "12", "--sample-every", "1"]
    process = start(2, *arguments)
    while process.poll() is None and not list(stopped.glob("samples/step-000001-*.png")):
        time.sleep(0.05)
    (second,) = processes_of(1, stopped)
    os.kill(second, signal.SIGINT)
    said = process.communicate(timeout=200)[1]
    last = [path.name for path in (stopped / "checkpoints").iterdir()]
    assert len(last) == 1 and last < ["step-000012"], said
    assert said.count("atomtune: stopped at step") == 1
    assert f"in 2 processes as before, goes on from step {int(last[0][5:])}." in said
    train(2, *arguments[:-1], "0")
    weights = [(out / "adapter" / "adapter_model.safetensors").read_bytes() for out in (whole, stopped)]
    assert weights[0] == weights[1]


class Halves(Trainer):
    """One process that computes the shares of two, one after the other: λ of `batch_topk` is that of the images of a
    forward pass, and so is the first λ in units of the running scale."""

    def _loss(self, micro):
        losses = []
        for self.half in (0, 1):
            losses.append(super()._loss(micro))
        return (losses[0] + losses[1]) / 2

    def _parts(self, *ends):
        rows = [(first, end - first) for first, end in zip((0, *ends), ends) if end > first or first == 0]
        return [slice(first + n * self.half // 2, first + n * (self.half + 1) // 2) for first, n in rows]


KINDS: dict[str, dict[str, Any]] = {
    "topk": {"caption_dropout": 0.3, "lr_scheduler": "cosine", "sample_every": 2, "l1": 0.01},
    "jumprelu": {"activation": "jumprelu", "threshold": 0.5},
    "scaled": {"activation": "jumprelu", "threshold": 0.5, "threshold_units": "scale", "density_penalty": 0.0},
    "batch_topk": {"activation": "batch_topk"},
    "dora": {"method": "dora", "rank": 2, "gradient_accumulation_steps": 2, "gradient_checkpointing": True},
}


@pytest.mark.slow
def test_two_processes_do_what_one_does_with_twice_the_batch(run, base, images, tmp_path, monkeypatch):
    """With the whole base in each, with FSDP2 and with DeepSpeed where it is installed; and a run may go on in another
    number of processes and another way, if a step takes as many images. All in one launch, because starting takes
    longer than these runs."""
    monkeypatch.setenv("ATOMTUNE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "others.txt").write_text("a red cat\nthe snow\n")
    common = {  # one image of other prompts in a step, so that the processes have unequal shares
        "steps": 4, "checkpoint_every": 2, "sample_every": 0, "num_atoms": 8, "report_to": "none",
        "preserve": True, "preserve_prompts": str(tmp_path / "others.txt"), "preserve_share": 0.25,
    }  # fmt: skip
    kinds = {kind: common | {"floor": float(kind != "dora")} | options for kind, options in KINDS.items()}
    by_halves = ("scaled", "batch_topk")
    numbers: dict[str, Any] = {kind: run(kind, batch_size=4, **kinds[kind]) for kind in kinds if kind not in by_halves}
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "Trainer", Halves)
        for kind in by_halves:
            numbers[kind] = run(kind, batch_size=4, preserve_weight=2.0, **kinds[kind])  # which is over the batch size
    steady = {"lr_scheduler": "constant", "floor": 0.0, "sample_every": 0}  # what more steps do not change
    kinds["steady"] = kinds["topk"] | steady
    numbers["steady"] = run("steady", batch_size=4, **kinds["steady"])
    run("moved", batch_size=4, **kinds["steady"] | {"steps": 1})

    def of_two(kind: str, way: str, **options: Any) -> dict[str, Any]:
        out = str(tmp_path / f"{kind}-{way}")
        own = {"images": str(images), "base": base, "class_name": "dog", "batch_size": 2, "out": out}
        return kinds[kind] | own | {"environment": WAYS[way]} | options

    here = [way for way in WAYS if way not in MISSING]
    both = [(kind, way) for way in here for kind in KINDS if way != "zero3" or kind in ("topk", "dora")]
    names = {f"{kind}-{way}": (kind, way) for kind, way in both}
    runs = [of_two(*name) for name in names.values()]
    moves = zip((2, 3), ("fsdp2", here[-1]))
    runs += [of_two("steady", way, out=str(tmp_path / "moved"), steps=steps) for steps, way in moves]
    (tmp_path / "runs.json").write_text(json.dumps(runs))
    script = str(Path(__file__).with_name("runs_of_two.py"))
    finish(launch(2, script, str(tmp_path / "runs.json"), PYTHONPATH=ZERO3["PYTHONPATH"]))
    run("moved", batch_size=4, **kinds["steady"])

    for name, (kind, way) in {"moved": ("steady", None), **names}.items():
        found = json.loads((tmp_path / name / "summary.json").read_text())
        for loss in ("loss", "held_loss"):
            assert found[loss] == pytest.approx(numbers[kind][loss], rel=1e-5), (name, loss)
        one, two = (load_file(tmp_path / out / "adapter" / "adapter_model.safetensors") for out in (kind, name))
        assert one.keys() == two.keys()
        for key, tensor in two.items():
            # The bound asked for: two processes add the images of a batch in another order than one does.
            assert_close(tensor, one[key], atol=1e-5, rtol=1e-5, msg=lambda text, at=(name, key): f"{at}: {text}")
            if key.endswith("floor.levels"):
                assert (tensor >= 0).all()  # measured
        if way is None:
            continue
        assert (found["processes"], found["sharded"]) == (2, way != "whole")
        for process in (0, 1):
            held = json.loads((tmp_path / name / f"held-{process}.json").read_text())
            assert held["trained"][0] == held["trained"][1]
            share = held["frozen"][0] / held["frozen"][1]
            assert share == 1 if way == "whole" else share < 0.55, name
    # What the sharded model drew is what its adapter draws in one process.
    pipe = atomtune.load_base(base)
    atomtune.load_adapter(pipe, tmp_path / "topk-fsdp2")
    for file in sorted((tmp_path / "topk-fsdp2" / "samples").glob("step-000004-*.png")):
        (again,) = atomtune.generate(pipe, read_settings(file)["prompt"], resolution=64)
        assert np.abs(np.asarray(again.image, int) - np.asarray(read_image(file), int)).max() <= 1
    assert len(list((tmp_path / "topk-fsdp2" / "samples").glob("*.png"))) == 4
    with pytest.raises(atomtune.UserError, match="a step takes 4 images there and 2 now"):
        run("topk-fsdp2", batch_size=2, **kinds["topk"] | {"steps": 7})


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_a_killed_process_ends_the_other_with_a_sentence_and_the_run_goes_on_in_one(run, base, images, tmp_path, way):
    if way in MISSING:
        pytest.skip(f"deepspeed is neither installed nor in {DEEPSPEED}")
    out = tmp_path / "run"
    options = ["--class-name", "dog", "--base", base, "--num-atoms", "8", "--report-to", "none", "--sample-every", "0"]
    more = ["--steps", "4000", "--checkpoint-every", "2", "--batch-size", "1"]
    process = start(2, str(images), "--out", str(out), *options, *more, **WAYS[way])
    while process.poll() is None and not list(out.glob("checkpoints/step-*")):
        time.sleep(0.05)
    (second,) = processes_of(1, out)
    os.kill(second, signal.SIGKILL)
    said = process.communicate(timeout=200)[1]
    assert process.returncode != 0
    sentence = re.search(
        r"atomtune: (another process of this run has ended|stopped at step).* goes on from step \d+", said
    )
    assert sentence, said[-3000:]
    last = int(sorted(path.name for path in (out / "checkpoints").iterdir())[-1][5:])
    assert run(num_atoms=8, report_to="none", batch_size=2, steps=last + 2)["steps"] == last + 2
