"""Time atoms beside LoRA, DoRA, OFT, the paper as written and the frozen model: `python -m benchmarks [CASE ...]`

One process, one run: methods take turns, so that all meet the same machine. Ratios are medians over rounds, each with
the quarter of the rounds below and above. For a quiet machine: nothing else may be running.
"""

import argparse
import json
import platform

import torch

from benchmarks.speed import measuring, page
from benchmarks.speed.models import CASES, ON_CPU


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)} (by default all; on a CPU {', '.join(ON_CPU)})"
    )
    parser.add_argument("--rounds", type=int, default=15, help="how many times each method has its turn")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, help="threads of PyTorch (one for each core by default)")
    parser.add_argument("--dtype", default="float32", help="of the frozen weights, such as bfloat16")
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    device, dtype = torch.device(given.device), getattr(torch, given.dtype)
    every = json.loads(page.RESULTS.read_text()) if page.RESULTS.is_file() else {}
    found = every.setdefault(device.type, {})
    machine = {
        "processor": torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or "x86-64",
        "threads": torch.get_num_threads(), "torch": torch.__version__, "rounds": given.rounds,
        "dtype": given.dtype,
    }  # fmt: skip
    for name in given.cases or (ON_CPU if device.type == "cpu" else CASES):
        print(name, flush=True)
        rate = measuring.gemm_rate(device, dtype)
        found[name] = {"methods": measuring.measure(CASES[name], given.rounds, device, dtype), "gemm": rate} | machine
        page.write(every)
    if not given.cases and device.type == "cpu":
        found["threads"] = measuring.threads(CASES["moji"], given.rounds)
    if not given.cases:
        found["growth"], found["synthesis"] = measuring.growth(device), measuring.synthesis(device)
        page.write(every)


if __name__ == "__main__":
    main()
