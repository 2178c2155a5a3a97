"""Speed, memory and reliability, measured: `python -m benchmarks` and `python -m benchmarks.reliability`."""
