"""All of them: `python -m experiments.steering [--quick]`. What is there for these weights of the base is kept."""

import argparse

from experiments.steering import report
from experiments.steering.common import FULL, QUICK, place

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a small slice, into the cache folder")
    setup = QUICK if parser.parse_args().quick else FULL
    for module in report.modules():
        module.run(setup)
    report.write(place(setup))
