"""Customize in a process of its own that kills itself with SIGKILL at a chosen moment:

never           not at all
step:N          in the middle of optimizer step N of this process
checkpoint:N    half-way through writing the Nth checkpoint of this process
adapter         while the finished adapter is written
"""

import multiprocessing
import os
import signal
from typing import Any

import diffusers.pipelines.pixart_alpha.pipeline_pixart_sigma  # noqa: F401  once, before the server forks
import torch
import torch.utils.tensorboard

import atomtune
from atomtune.storage import folders
from atomtune.training import checkpoints


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def arrange(moment: str) -> None:
    what, _, number = moment.partition(":")
    left = [int(number or 1)]

    def due() -> bool:
        left[0] -= 1
        return left[0] == 0

    if what == "step":
        step = torch.optim.AdamW.step

        def stepping(self, closure=None):
            if due():
                die()
            return step(self, closure)

        torch.optim.AdamW.step = stepping
    if what == "checkpoint":
        save: Any = checkpoints.save_file

        def saving(tensors, file):
            save(tensors, file)
            if due():
                os.truncate(file, os.path.getsize(file) // 2)
                die()

        checkpoints.save_file = saving
    if what == "adapter":
        write: Any = folders.write_weights

        def writing(folder, *arguments):
            if folder.parent.name == "run":  # beside the adapter of the run, not of a checkpoint
                die()
            write(folder, *arguments)

        folders.write_weights = writing


def run(moment: str, options: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    arrange(moment)
    atomtune.customize(**options)


def customize(moment: str, **options: Any) -> int:
    """The exit code of a run in a fresh process (from a server that has imported the libraries once)."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    process = context.Process(target=run, args=(moment, options))
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode
