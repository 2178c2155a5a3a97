"""Results on disk: a line a cell, whatever happens to the process that measures."""

import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from experiments.common.cells import cell, measured, plain, read, records, run_cells, spread, weights_digest


@dataclass(frozen=True)
class Config:
    k: tuple[int, ...] = (9,)


def test_a_cell_is_measured_once_and_again_when_its_settings_change(tmp_path):
    calls = []

    def measure(config):
        calls.append(config)
        return {"nmse": torch.tensor([0.123456789, 1.0])}

    for config in (Config(), Config(), Config((5,))):
        assert cell(tmp_path, "one", config, measure) == {"nmse": [0.12346, 1.0]}
    assert len(calls) == 2
    assert records(tmp_path)["one"]["settings"] == {"k": [5]}


def test_the_settings_of_a_cell_may_be_others_than_its_fields(tmp_path):
    @dataclass(frozen=True)
    class Own(Config):
        @property
        def settings(self):
            return {"base": "bb19f04b"}

    cell(tmp_path, "one", Own(), lambda config: {})
    assert records(tmp_path)["one"]["settings"] == {"base": "bb19f04b"}


def test_results_are_lines_sorted_by_name(tmp_path):
    for name in ("s1-b", "s0-b", "s1-a"):
        cell(tmp_path, name, Config(), lambda _: {"name": name})  # noqa: B023
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [line["name"] for line in lines] == ["s0-b", "s1-a", "s1-b"]
    assert [list(line) for line in lines] == [["name", "settings", "cpu_seconds", "values"]] * 3


def test_a_cell_that_fails_leaves_the_others(tmp_path):
    grid = {"good": Config((1,)), "bad": Config((0,)), "later": Config((2,))}
    with pytest.raises(ZeroDivisionError):
        run_cells(tmp_path, grid, lambda config: {"x": 1 / config.k[0]})
    assert read(tmp_path) == {"good": {"x": 1.0}}
    assert [file.name for file in tmp_path.iterdir()] == ["results.jsonl"]


def test_two_processes_beside_each_other_lose_no_cell(tmp_path):
    code = """
import sys
import threading
import time
from pathlib import Path
from experiments.common.cells import cell
class Config: settings = {}
for number in range(40):
    cell(Path(sys.argv[1]), f"{sys.argv[2]}-{number}", Config(), lambda _: {"number": number})
"""
    command = [sys.executable, "-c", code, str(tmp_path)]
    processes = [subprocess.Popen([*command, name], stdout=subprocess.DEVNULL) for name in ("a", "b")]
    assert [process.wait() for process in processes] == [0, 0]
    assert len(read(tmp_path)) == 80


def test_numbers_are_short_and_spread_is_the_deviation_over_seeds():
    assert plain({"a": torch.tensor(1 / 3), "b": (1, 2.0)}) == {"a": 0.33333, "b": [1, 2.0]}
    assert spread([1.0, 2.0, 3.0], 2) == "2.00 ± 1.00"


def test_tables_do_not_mix_cells_of_older_and_present_weights(tmp_path):
    @dataclass(frozen=True)
    class On(Config):
        base: str = "older"

    for name, config in {"free": Config(), "old": On(), "both": On()}.items():
        cell(tmp_path, name, config, lambda config: {"on": getattr(config, "base", None)})
    assert read(tmp_path).keys() == {"free", "old", "both"}
    assert measured(tmp_path).startswith("Weights of moji: older ones")
    cell(tmp_path, "both", On(base=weights_digest()), lambda config: {"on": "present"})
    assert read(tmp_path) == {"free": {"on": None}, "both": {"on": "present"}}
    assert measured(tmp_path).startswith("Weights of moji: those that ship;")


def squared(config):
    if config.k == (0,):
        raise ValueError("no root")
    return {"square": config.k[0] ** 2}


def slowly_squared(config):
    time.sleep(2)
    return squared(config)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # ray's own
def test_on_a_cluster_of_which_a_machine_is_killed_no_cell_is_lost(tmp_path, monkeypatch):
    import ray
    from ray.cluster_utils import Cluster

    root = Path(__file__).parents[2]
    monkeypatch.setenv("PYTHONPATH", f"{root / 'src'}{os.pathsep}{root}")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    other = cluster.add_node(num_cpus=1)

    def kill_one():
        while len(read(tmp_path)) < 2:
            time.sleep(0.1)
        cluster.remove_node(other, allow_graceful=False)  # SIGKILL, while it works on a cell

    killing = threading.Thread(target=kill_one, daemon=True)
    killing.start()
    try:
        with pytest.raises(ExceptionGroup, match="1 cells failed") as caught:
            run_cells(tmp_path, {str(k): Config((k,)) for k in range(8)}, slowly_squared, ray=cluster.address)
    finally:
        ray.shutdown()
        cluster.shutdown()
    killing.join(60)
    assert not killing.is_alive() and "no root" in str(caught.value.exceptions[0])
    assert read(tmp_path) == {str(k): {"square": k**2} for k in range(1, 8)}


def test_cells_are_run_in_several_processes_and_one_that_fails_leaves_the_others(tmp_path):
    grid = {str(k): Config((k,)) for k in range(4)}
    with pytest.raises(ExceptionGroup, match="1 cells failed") as caught:
        run_cells(tmp_path, grid, squared, jobs=2)
    assert str(caught.value.exceptions[0]) == "no root"
    assert read(tmp_path) == {str(k): {"square": k**2} for k in (1, 2, 3)}
