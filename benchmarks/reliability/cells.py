"""A sweep on a real Ray cluster of two nodes, of which one is killed while both work: is every cell there, once?"""

import csv
import os
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from atomtune import sweeping
from atomtune.errors import UserError

OPTIONS = {"steps": 2, "sample_every": 0, "measure_every": 1, "report_to": "none", "num_atoms": 4, "rank": 2}
EVERY = 10
"""After so many cells a node is killed, and another one comes."""


def write_sweep(folder: Path, base: str, **options: Any) -> Path:
    """The file of a small sweep of four cells a seed, with its image."""
    (folder / "dogs").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "dogs" / "0.png")
    given = {
        "folders": {str(folder / "dogs"): "dog"},
        "methods": ["atoms", "lora"],
        "options": {"slow": {"learning_rate": 0.001}, "fast": {"learning_rate": 0.01}},
        "seeds": [0],
        "out": str(folder / "sweep"),
        "base": base,
        **OPTIONS,
    }
    (folder / "sweep.yaml").write_text(yaml.safe_dump(given | options, sort_keys=False))
    return folder / "sweep.yaml"


def table(file: Path) -> list[str]:
    """The cells in the table of a sweep."""
    with (file.parent / "sweep" / "results.csv").open() as opened:
        return [row["cell"] for row in csv.DictReader(opened)]


def on_a_cluster(file: Path, first: int, every: int | None = None) -> tuple[list[str], int]:
    """The cells in the order in which they came, and how many nodes were killed: one with SIGKILL after the `first`
    cell, and then one after `every` more."""
    import ray
    from ray.cluster_utils import Cluster

    root = Path(__file__).parents[2]
    os.environ["PYTHONPATH"] = f"{root / 'src'}{os.pathsep}{root}"
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    others, seen = [cluster.add_node(num_cpus=1)], []

    def kill(name: str, found: Any) -> None:
        assert not isinstance(found, UserError), found
        seen.append(name)
        more = len(seen) - first
        if more == 0 or (every and more > 0 and more % every == 0):
            cluster.remove_node(others[-1], allow_graceful=False)
            if every:
                others.append(cluster.add_node(num_cpus=1))

    try:
        sweeping.sweep(file, cluster.address, kill)
    finally:
        ray.shutdown()
        cluster.shutdown()
    return seen, len(others) - bool(every)


def measure(folder: Path, seeds: int) -> dict[str, Any]:
    """Counts of cells and killed nodes of a sweep with so many seeds."""
    from tests.tiny_pixart import save_tiny_pixart

    file = write_sweep(folder, str(save_tiny_pixart(folder / "base")), seeds=[*range(seeds)])
    seen, killed = on_a_cluster(file, 2, EVERY)
    there = table(file)
    return {"cells": 4 * seeds, "killed": killed, "came": len(seen), "rows": len(there), "different": len({*there})}
