"""Speed, memory and reliability, measured: `python -m benchmarks`."""
