"""Training moji on a CPU: one thread, and the memory settings that pretraining has measured."""

import os
import sys

import torch

from pretraining.__main__ import SETTINGS


def as_in_pretraining() -> None:
    """Start this command again with pretraining's settings, which hold from a process's start on, if it has others."""
    if not SETTINGS.items() <= os.environ.items():
        os.execve(sys.executable, sys.orig_argv, os.environ | SETTINGS)
    torch.set_num_threads(1)
