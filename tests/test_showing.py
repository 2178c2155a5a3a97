"""A board as a person sees it."""

import base64
import io
import re

import numpy as np
import pytest
import torch
from peft import get_peft_model
from PIL import Image

from atomtune.showing import GREEN, MARGIN, NONE, RED, AtomMap, dials
from atomtune.steering import board
from atomtune.tracing import trace
from tests.adapters.tiny import atom_config, run, transformer, wake


def traced():
    torch.manual_seed(0)
    model = wake(get_peft_model(transformer(), atom_config()))
    with trace(model):
        run(model)
    return board(model)


def test_a_notebook_shows_map_dials_and_strongest_atoms():
    atoms = traced()
    atoms["L1[5]"].gain = 0.0
    atoms.drop(["L0[3]"])
    page = atoms._repr_html_()
    assert "36 atoms in 2 layers" in page and "35 of 36" in page and "1 atom silent" in page
    picture = Image.open(io.BytesIO(base64.b64decode(re.findall(r"base64,([^\"]+)", page)[0])))
    assert picture.height == 2 * 20
    energies = [value for layer in atoms.mean_energy() for value in layer.tolist()]
    strongest = [atom.address for atom in atoms][int(np.argmax(energies))]
    assert re.findall(r"<tr><td>(L\d+\[\d+\])", page)[0] == strongest
    assert page.count("<tr><td>L") == 10


def test_without_energies_it_says_how_to_get_them():
    page = board(get_peft_model(transformer(), atom_config()))._repr_html_()
    assert "atomtune.trace" in page and "<img" not in page


def test_a_pixel_of_the_map_is_an_atom():
    atoms = traced()
    atoms.only([atom.address for atom in atoms if atom.address != "L0[7]"])
    energies = atoms.mean_energy()
    seen = AtomMap.of(atoms.dictionaries, energies)
    width, height = seen.cell
    assert seen.address(MARGIN + 5 * width, height) == "L1[5]"
    assert seen.address(MARGIN + 5 * width - 1, 0) == "L0[4]" and seen.address(MARGIN, 0) == "L0[0]"
    assert seen.address(MARGIN - 1, 0) is None and seen.address(0, 0) is None  # the addresses of the layers
    assert seen.address(MARGIN + 18 * width, 0) is None and seen.address(MARGIN, 2 * height) is None
    assert seen.image.getpixel((MARGIN + 7 * width, 0)) == RED
    row, column = divmod(int(np.argmax([v for each in energies for v in each.tolist()])), 18)
    assert seen.image.getpixel((MARGIN + column * width, row * height)) == GREEN


@pytest.mark.parametrize("layers", [2, 60])
def test_layers_are_named_beside_the_map_as_many_as_there_is_room_for(layers):
    dictionaries = traced().dictionaries[:1] * layers
    seen = AtomMap.of(dictionaries, [torch.zeros(18)] * layers)
    text = (np.asarray(seen.image)[:, :MARGIN] != NONE).any(2)
    assert text.any() and not text[:, 0].any() and not text[:, -1].any()  # nothing is cut
    names = int(np.diff(text.any(1).astype(int), prepend=0).clip(0).sum())  # blocks of rows with text
    assert names == (2 if layers == 2 else 15)  # a name is as high as four of 60 rows


def test_a_pruned_adapter_keeps_its_places():
    model = wake(get_peft_model(transformer(), atom_config()))
    atoms = board(model)
    atoms.only(["L0[2, 9]", "L1[17]"])
    model.prune()
    seen = AtomMap.of(atoms.dictionaries, [d.gain for d in atoms.dictionaries])
    assert seen.address(MARGIN + 17 * seen.cell[0], seen.cell[1]) == "L1[17]"
    assert seen.address(MARGIN + 17 * seen.cell[0], 0) is None


def test_dials_in_words():
    atoms = traced()
    assert dials(atoms)["gains"] == "all 1" and dials(atoms)["strength by timestep"] == "1 at all"
    atoms.schedule = {300: 0, 1000: 1}
    assert dials(atoms)["strength by timestep"] == "1 at 1000, 0 at 300"
