"""What a run and the files of strangers must survive: `python -m benchmarks.reliability` (see `__main__.py`).

kills.py       SIGKILL, SIGTERM and Ctrl-C at random moments; resumed, the run ends with the same bits
fuzzing.py     spoiled files: one sentence, or they are read; no crash, no hang, no other error, no memory taken
cells.py       sweeps on a cluster that loses machines
guided.py      fuzzing guided by coverage
precision.py   bf16 and fp16 beside fp32
results.json   what was counted
"""
