"""The parts of a base are on the accelerator while they work, and not before or after."""

import json
import subprocess
import sys


def test_the_parts_of_a_base_are_on_the_accelerator_while_they_work(base, images, tmp_path):
    command = [sys.executable, "-m", "tests.training.parts_on_a_gpu", base, images, tmp_path / "run"]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert (said["device"], said["dtype"]) == ("gpu:0", "float32")
    assert said["found"] == [
        ["decodes", "transformer, vae"],  # a sample; training goes on with the denoiser at once
        ["decodes", "vae"],  # an image of the class
        ["denoises", "transformer"],
        ["encodes", "vae"],
        ["reads a prompt", "text_encoder"],
    ]
