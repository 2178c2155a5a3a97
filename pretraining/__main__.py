"""Go on with moji, or rebuild it, stage by stage: `python -m pretraining [--images N] [--from-nothing]`.

Every stage resumes after a kill and skips what is done. The transformer goes on from its checkpoint, or else from the
committed weights; to start from nothing, move those away first. Stages run as processes of their own, with the memory
and thread settings that were measured to matter on a CPU: freed memory is kept (page faults took half of the time
otherwise), in huge pages, and waiting threads sleep.
"""

import argparse
import os
import subprocess
import sys

SETTINGS = {
    "MALLOC_MMAP_THRESHOLD_": "33554432",
    "MALLOC_TRIM_THRESHOLD_": "4000000000",
    "MALLOC_TOP_PAD_": "200000000",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    "OMP_WAIT_POLICY": "PASSIVE",
}


def main() -> None:
    """Run all stages in order; stop at the first that fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", default="12000000", help="images the transformer sees in all")
    cores = 2 if (os.cpu_count() or 1) > 1 else 1
    parser.add_argument("--from-nothing", action="store_true", help="train autoencoder and judge again, too")
    options = parser.parse_args()
    images = options.images
    for stage in (
        ["drawings"],
        # The transformer's latents are those of this autoencoder: another one would make its weights worthless.
        *([["autoencoder"], ["judge"]] if options.from_nothing else []),
        ["transformer", "--images", images],
        ["transformer", "--export"],
        ["evaluate"],
        ["card"],
    ):
        print(f"== {' '.join(stage)}", flush=True)
        launcher = ["torch.distributed.run", "--nproc-per-node", str(cores), "-m"] if "--images" in stage else []
        command = [sys.executable, "-m", *launcher, f"pretraining.{stage[0]}", *stage[1:]]
        subprocess.run(command, check=True, env=SETTINGS | os.environ)


if __name__ == "__main__":
    main()
