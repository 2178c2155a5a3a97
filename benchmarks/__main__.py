"""Time atoms beside LoRA, DoRA, OFT, the paper as written and the frozen model: `python -m benchmarks [CASE ...]`

One process, one run: methods take turns, so that all meet the same machine. Ratios are medians over rounds, each with
the quarter of the rounds below and above. For a quiet machine: nothing else may be running.
"""

import argparse
import json
import platform
from pathlib import Path

import torch

from benchmarks.speed import measuring, page
from benchmarks.speed.models import CASES, ON_CPU

OTHERS = {
    "commands": measuring.commands, "threads": measuring.threads, "tricks": measuring.tricks,
    "growth": measuring.growth, "synthesis": measuring.synthesis, "crossover": measuring.crossover,
}  # fmt: skip


def processor() -> str:
    """The CPU's name, where Linux tells it."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "cases",
        nargs="*",
        metavar="CASE",
        help=f"of {', '.join([*CASES, *OTHERS])} (by default all; on a CPU without pixart-sigma)",
    )
    parser.add_argument("--rounds", type=int, default=15, help="how many times each method has its turn")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, help="threads of PyTorch (one for each core by default)")
    parser.add_argument("--dtype", default="float32", help="of the frozen weights, such as bfloat16")
    given = parser.parse_args()
    if unknown := {*given.cases} - {*CASES, *OTHERS}:  # argparse refuses an empty list of choices
        parser.error(f"there is no case {', '.join(sorted(unknown))}")
    if given.threads:
        torch.set_num_threads(given.threads)
    device, dtype = torch.device(given.device), getattr(torch, given.dtype)
    every = json.loads(page.RESULTS.read_text()) if page.RESULTS.is_file() else {}
    found = every.setdefault(device.type, {})
    machine = {
        "processor": torch.cuda.get_device_name() if device.type == "cuda" else processor(),
        "threads": torch.get_num_threads(), "torch": torch.__version__, "rounds": given.rounds,
        "dtype": given.dtype,
    }  # fmt: skip
    every_case = [*(ON_CPU if device.type == "cpu" else CASES), *OTHERS]
    for name in given.cases or every_case:
        print(name, flush=True)
        if name in OTHERS:
            found[name] = OTHERS[name](device)
        else:
            rate = measuring.gemm_rate(device, dtype)
            methods = measuring.measure(CASES[name], given.rounds, device, dtype)
            found[name] = {"methods": methods, "gemm": rate} | machine
        page.write(every)


if __name__ == "__main__":
    main()
