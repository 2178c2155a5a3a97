"""Settings as data: the same as a preset, as Python and as a command line."""

import json
import shlex

import numpy as np
import pytest

import atomtune
from atomtune import generate
from atomtune.cli import main
from atomtune.dialling import Settings, Trained
from atomtune.errors import UserError
from atomtune.shipped import ADAPTER
from atomtune.steering import board
from tests.analysis.tiny import adapted_pixart

SETTINGS = Settings(0.02, 0.99, 300, {"L3": 0.5}, {1000.0: 1.0, 0.0: 0.5})


@pytest.fixture(scope="module")
def pipe():
    pipe = atomtune.load_base("moji")
    atomtune.load_adapter(pipe, ADAPTER)
    return pipe


def test_a_preset_is_what_the_dials_would_be(pipe):
    atoms = board(pipe)
    preset = SETTINGS.preset(atoms)
    assert atoms.preset() == {}  # left as they were
    atoms.density, atoms.floor = 0.02, 0.99
    atoms.keep(300)
    atoms["L3"].gain = 0.5
    atoms.schedule = {1000: 1.0, 0: 0.5}
    assert atoms.preset() == preset and json.loads(json.dumps(preset)) == preset
    assert Settings(gains={"L2": 2.0}).preset(atoms)["gain"] == {"L2": 2.0}
    assert atoms.preset() == preset  # other dials come back too
    atoms.reset()


def test_what_is_refused_leaves_the_board_as_it_was(pipe):
    with pytest.raises(UserError, match="no 'L99'"):
        Settings(density=0.01, gains={"L99": 2.0}).preset(board(pipe))
    assert board(pipe).preset() == {}


def test_python_and_command_draw_the_same_image(pipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(SETTINGS.python(ADAPTER, "a sks teapot", 2, 4), {})
    by_python = np.asarray(atomtune.sampling.read_image("image.png"))
    file = tmp_path / "preset.json"
    file.write_text(json.dumps(SETTINGS.preset(board(pipe))))
    words = shlex.split(SETTINGS.command(ADAPTER, "a sks teapot", 2, 4, preset=file))
    words = words[words.index("generate") :]
    main([*words, "--out", "drawn"])
    (drawn,) = (tmp_path / "drawn").glob("000-*.png")
    assert np.array_equal(np.asarray(atomtune.sampling.read_image(drawn)), by_python)
    board(pipe).apply(file)
    image = generate(pipe, "a sks teapot", seed=2, steps=4)[0].image
    board(pipe).reset()
    assert np.array_equal(np.asarray(image), by_python)


def test_as_trained_needs_neither_board_nor_preset():
    assert "board" not in Settings().python("runs/a", "a sks teapot") and str(Settings()) == "as trained"
    assert (
        Settings(density=0.02)
        .command("runs/a", "a b")
        .endswith("generate runs/a --prompt 'a b' --seed 0 --density 0.02")
    )
    assert str(SETTINGS) == "density 0.02, floor 0.99, 300 atoms, L3 × 0.5, strength 1 at 1000, 0.5 at 0"


def test_only_what_differs_from_training_is_a_setting(pipe):
    own = Trained.of(board(pipe), 5)
    assert own.measured and own.atoms == len(board(pipe)) and len(own.strongest) == 5
    assert own.settings(round(own.density, 3), own.floor, own.atoms, {"L1": 1}, {1000.0: 1, 0.0: 1}) == Settings()
    assert own.settings(0.01, 0.5, 40, {"L1": 2}, {1000.0: 1, 0.0: 0}) == Settings(
        0.01, 0.5, 40, {"L1": 2}, {1000.0: 1, 0.0: 0}
    )
    values = [value for energy in board(pipe).mean_energy() for value in energy.tolist()]
    energies = dict(zip([atom.address for atom in board(pipe)], values))
    assert own.strongest == sorted(energies, key=lambda address: -energies[address])[:5]


def test_without_energies_the_atoms_come_in_their_own_order():
    own = Trained.of(board(adapted_pixart()), 3)
    assert own.strongest == ["L0[0]", "L0[1]", "L0[2]"] and not own.measured
