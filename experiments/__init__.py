"""The paper's small experiments, one folder each: `python -m experiments` runs what is missing and writes every page.

Each folder holds run.py (settings, seeds, one JSON per cell in results/), plot.py (its figure, in docs/results/figures)
and README.md (claim, setup, verdict; its table is generated). Only run.py trains; everything else reads JSON.
"""
