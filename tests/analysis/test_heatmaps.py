"""Maps are the codes laid out as the tokens are; colours say their strength, and never hide the image."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from atomtune.analysis.heatmaps import (
    BLUE,
    GREEN,
    RED,
    _words,
    acting_at,
    acting_words,
    overlay,
    phases,
    pooled,
    tint,
    token_grid,
)
from atomtune.bases import load_base
from atomtune.errors import UserError
from atomtune.sampling import generate
from atomtune.shipped import ADAPTER
from atomtune.storage.folders import load_adapter
from atomtune.tracing import trace
from tests.analysis.tiny import adapted_pixart


def near(pixel, colour) -> bool:
    """Coloured like `colour`, as dark as it or paler."""
    pale = (pixel.astype(float) - np.array(colour)) / (255 - np.array(colour))  # 0: as it is, 1: white
    return bool(np.ptp(pale) < 0.05 and pale.mean() < 0.55)


@pytest.mark.parametrize(
    "tokens, aspect, grid", [(64, 1.0, (8, 8)), (32, 2.0, (4, 8)), (4096, 1.0, (64, 64)), (6, 0.7, (3, 2))]
)
def test_tokens_form_the_grid_of_the_picture(tokens, aspect, grid):
    assert token_grid(tokens, aspect) == grid


@pytest.mark.parametrize("tokens", [24, 30, 77, 120])
def test_tokens_of_a_text_form_none(tokens):
    with pytest.raises(UserError, match="do not form a grid"):
        token_grid(tokens)


def test_an_atom_is_green_where_it_acts_and_grey_where_it_does_not(scene):
    heat = torch.zeros(64)
    heat[0], heat[63] = 2.0, -2.0  # the sign of a code means nothing
    pixels = np.asarray(overlay(scene, heat))
    assert near(pixels[0, 0], GREEN) and near(pixels[-1, -1], GREEN)
    assert len(set(pixels[32, 32].tolist())) == 1
    assert overlay(scene, heat, size=128).size == (128, 128)


def test_a_tint_is_red_above_zero_blue_below_and_grey_at_zero():
    pixels = np.asarray(tint(Image.new("RGB", (3, 1), "gray"), np.array([[1.0, 0.0, -1.0]]), 1.0))[0]
    assert near(pixels[0], RED) and near(pixels[2], BLUE)
    assert len(set(pixels[1].tolist())) == 1


@pytest.mark.parametrize("strength", [-9.0, 0.0, 9.0])
def test_the_image_is_seen_under_the_strongest_colour(strength):
    """An atom that acts everywhere does not hide the image it acts in."""
    image = Image.fromarray(np.array([[0, 255]], np.uint8))
    black, white = np.asarray(tint(image, np.full((1, 2), strength), 1.0).convert("L"))[0].astype(int)
    assert white - black > 60


def test_a_common_scale_keeps_a_weak_map_pale(scene):
    heat = torch.full((64,), 0.1)
    alone, beside = (np.asarray(overlay(scene, heat, full))[0, 0].astype(int) for full in (None, 1.0))
    assert near(alone, GREEN)
    assert not near(beside, GREEN)


def test_nothing_fired_is_just_grey():
    pixels = np.asarray(overlay(Image.new("RGB", (64, 64), "white"), torch.zeros(16)))
    assert (pixels == pixels[0, 0, 0]).all()


def test_phases_are_thirds_from_the_noise_on():
    assert phases([10.0, 900, 500, 700, 300]) == {"early": [900, 700], "middle": [500, 300], "late": [10]}
    assert phases([900.0]) == {"early": [900]}


def test_pooling_keeps_the_mean():
    maps = torch.rand(2, 64, 3)
    small = pooled(maps, (8, 8), 4)
    assert small.shape == (2, 16, 3)
    assert_close(small[:, 0], maps.unflatten(1, (8, 8))[:, :2, :2].mean((1, 2)))
    assert pooled(maps, (8, 8), 8) is maps


def test_what_acts_at_a_place_is_what_the_maps_say_there():
    """Of the layers that see the image: those of the words have no place in it."""
    pipe = adapted_pixart(target_modules=["attn1.to_v", "attn2.to_v"])
    with trace(pipe, codes=True) as seen:
        generate(pipe, "a sks dog", steps=2)
    found = acting_at(seen, 0.3, 0.6, count=5)  # of 4 × 4 tokens: row 2, column 1
    assert len(found) == 5 and [value for _, value in found] == sorted([value for _, value in found], reverse=True)
    everywhere = {
        atom.address: float(atom.maps(magnitude=True)[0][2 * 4 + 1] * layer.norms[atom.index])
        for layer in seen.layers
        if "attn1" in layer.name
        for atom in layer
    }
    assert {atom.address: pytest.approx(value) for atom, value in found} == dict(
        sorted(everywhere.items(), key=lambda item: -item[1])[:5]
    )
    with pytest.raises(UserError, match=r"from 0 to 1, got 1\.2"):
        acting_at(seen, 1.2, 0)


def test_the_strongest_atoms_are_those_of_most_energy():
    pipe = adapted_pixart()
    with trace(pipe) as seen:
        generate(pipe, "a sks dog", steps=2)
    energies = sorted((atom.mean_energy for layer in seen.layers for atom in layer), reverse=True)
    assert [atom.mean_energy for atom in seen.strongest(6)] == pytest.approx(energies[:6])
    assert len(seen.strongest(1000)) == sum(value > 0 for value in energies)


def test_the_words_at_which_an_atom_of_words_acts():
    """On the values of cross-attention an atom sees words, and has no map."""
    pipe, prompt = load_base("moji"), "a sks teapot on a red background"
    load_adapter(pipe, ADAPTER)
    with trace(pipe, codes=True) as seen:
        generate(pipe, prompt, steps=2)
    atom = next(one for one in seen.strongest(100) if not one.layer.sees_image)
    with pytest.raises(UserError, match="sees the words of the prompt"):
        atom.maps()
    found = acting_words(atom, pipe, prompt)
    assert found and found == sorted(found, key=lambda pair: -pair[1])
    assert all(value > 0 for _, value in found)
    assert_close(
        torch.stack([atom.codes(t)[0].abs() for t in atom.mean_energy_by_timestep]).mean(0),
        atom.means(magnitude=True)[0],
    )
    words = ["[CLS]", "a", "sk…", "…s", "tea…", "…pot", "on", "a", "red", "background", "[SEP]"]
    assert {word for word, _ in found} <= set(words)
    assert _words(pipe.tokenizer, prompt) == words
    assert _words(pipe.tokenizer, "Two-tone teapots!")[1:-1] == ["Two", "-", "tone", "tea…", "…pot…", "…s", "!"]
