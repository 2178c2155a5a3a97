"""Experiments, one folder each: `python -m experiments` (see `__main__.py`).

    run.py         grid: its cells, by name, each with the settings that it is run again for when they change
                   measure: the values of a cell; this alone trains
                   results: its table; claims, section, page: what the pages say of it, where they do
    plot.py        plot: its figures, from results; pictures: those that an adapter has to draw
    results.jsonl  what was measured, a line a cell
    README.md      what is asked, how it is run, the rule of the verdict, the table

What several share is in common/, what puts their results on pages in pages/.
"""
