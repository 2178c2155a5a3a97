"""Many runs, here and on a Ray cluster of which a machine fails: every cell exactly once in the table."""

from pathlib import Path

import pytest
import yaml

from atomtune import UserError, sweeping
from atomtune.cli import main
from benchmarks.reliability.cells import on_a_cluster, table, write_sweep


@pytest.fixture
def file(base, tmp_path) -> Path:
    return write_sweep(tmp_path, base)


CELLS = ["dogs-atoms-slow-0", "dogs-atoms-fast-0", "dogs-lora-slow-0", "dogs-lora-fast-0"]


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
    assert table(file) == []  # no numbers of another run


def test_a_cell_that_fails_does_not_end_the_others(file, monkeypatch):
    def customize(config):
        if config.method == "atoms":
            raise MemoryError("no room\nleft")
        return {}

    monkeypatch.setattr(sweeping, "customize", customize)
    found = {}
    sweeping.sweep(file, on_cell=lambda name, result: found.update({name: result}))
    assert [*found] == CELLS and str(found[CELLS[0]]) == "MemoryError: no room left" and found[CELLS[3]] == {}


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
    change(file, seeds=[0, 1])
    seen, killed = on_a_cluster(file, first=2)
    expected = [f"{cell[:-1]}{seed}" for cell in CELLS for seed in (0, 1)]
    assert sorted(seen) == sorted(expected)
    assert killed == 1 and table(file) == expected
