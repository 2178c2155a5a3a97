"""Many runs, here and on a Ray cluster of which a machine fails: every cell exactly once in the table."""

import csv
import os
from pathlib import Path

import pytest
import yaml

from atomtune import UserError, sweeping
from atomtune.cli import main

OPTIONS = {"steps": 2, "sample_every": 0, "measure_every": 1, "report_to": "none", "num_atoms": 4, "rank": 2}


@pytest.fixture
def file(base, tmp_path) -> Path:
    import numpy as np
    from PIL import Image

    (tmp_path / "dogs").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "dogs" / "0.png")
    given = {
        "folders": {str(tmp_path / "dogs"): "dog"},
        "methods": ["atoms", "lora"],
        "options": {"slow": {"learning_rate": 0.001}, "fast": {"learning_rate": 0.01}},
        "seeds": [0],
        "out": str(tmp_path / "sweep"),
        "base": base,
        **OPTIONS,
    }
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(given, sort_keys=False))
    return tmp_path / "sweep.yaml"


CELLS = ["dogs-atoms-slow-0", "dogs-atoms-fast-0", "dogs-lora-slow-0", "dogs-lora-fast-0"]


def table(file: Path) -> list[str]:
    with (file.parent / "sweep" / "results.csv").open() as opened:
        return [row["cell"] for row in csv.DictReader(opened)]


def change(file: Path, **values) -> None:
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | values, sort_keys=False))


@pytest.mark.slow
def test_cells_come_one_by_one_and_those_that_are_done_stay(file, capsys):
    seen = []

    def stop_at_two(name, found):
        seen.append((name, table(file)))
        if len(seen) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweeping.sweep(file, on_cell=stop_at_two)
    assert seen == [(CELLS[0], CELLS[:1]), (CELLS[1], CELLS[:2])]
    weights = file.parent / "sweep" / CELLS[0] / "adapter" / "adapter_model.safetensors"
    before = weights.stat().st_mtime_ns
    main(["sweep", str(file)])
    assert weights.stat().st_mtime_ns == before
    assert table(file) == CELLS
    assert "4 of 4  dogs-lora-fast-0" in capsys.readouterr().out
    change(file, num_atoms=5)  # what is there is not overwritten, and the others go on
    main(["sweep", str(file)])
    assert "holds another run (num_atoms 4 there and 5 now" in capsys.readouterr().out


@pytest.mark.parametrize(
    "values, sentence",
    [
        ({"folders": ["dogs"]}, "folders in .* must be a mapping, such as 'photos/teapot: teapot'"),
        ({"options": {"a": 1}}, "each of the options in .* must be a mapping"),
        ({"methods": "atoms"}, "needs lists of methods and seeds"),
        ({"methods": ["magic"]}, "method must be one of"),
        ({"nonsense": 1}, "unknown option nonsense"),
        ({"options": {"a b": {}, "a-b": {}}}, "two cells of .* have the name"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_trained(file, values, sentence):
    change(file, **values)
    with pytest.raises(UserError, match=sentence):
        sweeping.sweep(file)
    assert not (file.parent / "sweep").exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # ray's own
def test_on_a_cluster_of_which_a_machine_is_killed_no_cell_is_lost(file):
    import ray
    from ray.cluster_utils import Cluster

    change(file, seeds=[0, 1])
    root = Path(__file__).parents[1]
    os.environ["PYTHONPATH"] = f"{root / 'src'}{os.pathsep}{root}"
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    other = cluster.add_node(num_cpus=1)
    seen = []

    def kill_one(name, found):
        assert not isinstance(found, UserError), found
        seen.append(name)
        if len(seen) == 2:
            cluster.remove_node(other, allow_graceful=False)  # SIGKILL, while it works on a cell

    try:
        rows = sweeping.sweep(file, cluster.address, kill_one)
    finally:
        ray.shutdown()
        cluster.shutdown()
    expected = [f"{cell[:-1]}{seed}" for cell in CELLS for seed in (0, 1)]
    assert sorted(seen) == sorted(expected)
    assert [row["cell"] for row in rows] == table(file) == expected
