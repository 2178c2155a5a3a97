"""How much of an adapter's likeness fewer atoms keep, and how many are proposed."""

import numpy as np
import pytest
import torch
from peft import get_peft_model
from PIL import Image

from atomtune import board, metrics
from atomtune.analysis import likeness as module
from atomtune.analysis.examples import training_examples
from atomtune.analysis.likeness import NOISE, Likeness, Rung, halvings, proposal, with_best
from atomtune.sampling import Drawing
from tests.adapters.tiny import atom_config, transformer, wake
from tests.analysis.tiny import adapted_pixart


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "a.png")
    return folder


def test_likeness_is_the_share_of_what_all_atoms_gain(images):
    pipe = adapted_pixart()
    likeness = Likeness(pipe, images, "a sks dog")
    examples, atoms = training_examples(pipe, images, "a sks dog", seed=NOISE), board(pipe)

    def loss() -> float:
        with torch.no_grad():
            return float(examples.losses().mean())

    whole = loss()
    atoms.keep(5, [torch.rand(dictionary.num_atoms) for dictionary in atoms.dictionaries])
    few, measured = loss(), likeness(pipe)
    for dictionary in atoms.dictionaries:
        dictionary.keep_only(None)
        dictionary.gain.zero_()
    base = loss()
    assert measured == pytest.approx((base - few) / (base - whole), rel=1e-3)
    assert likeness.known == (base > whole)


def test_on_moji_each_subject_is_judged_by_its_own_images(tmp_path, monkeypatch):
    pipe, seen = adapted_pixart(), []
    monkeypatch.setattr(module.bases, "MOJI", pipe.name_or_path)

    class Judge:
        def fidelity(self, images, references):
            seen.append((len(images), len(references)))
            return np.array([0.5])

    monkeypatch.setattr(metrics, "load_judge", Judge)
    for name, count in (("1_sks dog", 1), ("1_ohwx cat", 2)):
        (tmp_path / name).mkdir()
        for number in range(count):
            Image.new("RGB", (64, 64)).save(tmp_path / name / f"{number}.png")
    drawn = []
    monkeypatch.setattr(
        module.sampling,
        "generate",
        lambda pipe, prompts, num: drawn.append((prompts, num)) or [Drawing(Image.new("RGB", (8, 8)), {})] * num,
    )
    assert Likeness(pipe, tmp_path, "not used").whole == 0.5
    assert drawn[:2] == [(["a ohwx cat"], 5), (["a sks dog"], 5)]
    assert seen[:2] == [(5, 2), (5, 1)]


def test_the_ladder_halves_until_little_is_left_and_drops_nothing():
    atoms = board(wake(get_peft_model(transformer(), atom_config(num_atoms=16))))
    count, kept = len(atoms), lambda: len(atoms.kept) / count
    scores = [torch.rand(dictionary.num_atoms) for dictionary in atoms.dictionaries]
    rungs = halvings(atoms, scores, lambda: 1.9 * kept())
    assert [rung.atoms for rung in rungs] == [count // 2, count // 4]
    assert rungs[0].likeness == pytest.approx(0.95) and kept() == 1
    assert with_best(atoms, 3, scores, kept) == pytest.approx(3 / count) and kept() == 1
    assert with_best(atoms, 3, scores, kept, per_layer=True) == pytest.approx(3 * len(atoms.layers) / count)
    assert [rung.atoms for rung in halvings(atoms, scores, lambda: 1.0)][-1] == 1


@pytest.mark.parametrize(
    "shares, expected",
    [([1.0, 0.97, 0.84], 25), ([1.0, 0.85, 0.91], 50), ([0.89, 1.0], None), ([], None), ([0.9], 50)],
)
def test_the_proposal_is_the_smallest_number_that_keeps_nine_tenths_as_all_larger_ones_do(shares, expected):
    found = proposal([Rung(50 // 2**step, share) for step, share in enumerate(shares)])
    assert (found and found.atoms) == expected
