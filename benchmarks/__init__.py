"""Measurements of the library itself, which the pages in docs/results show: `python -m benchmarks.NAME`."""
