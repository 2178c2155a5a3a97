"""Planted atoms get the right names, noise gets none."""

import pytest
import torch

from atomtune.analysis.naming import IMAGES, Factor, evidence, name, near_duplicates, region_factors
from atomtune.analysis.prompts import crossed_prompts
from atomtune.errors import UserError
from atomtune.metrics.pixels import as_array
from atomtune.moji.scenes import BACKGROUNDS

WORDS = [Factor(word, "subject") for word in ("teapot", "cat")] + [Factor(word, "place") for word in ("left", "top")]


def draw(rows: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Independent factors, and 60 atoms of which the first two answer to "cat" and to "teapot" and "top"."""
    presence = (torch.rand(rows, len(WORDS), generator=generator) < 0.4).float()
    activity = torch.rand(rows, 60, generator=generator).square()
    activity[:, 0] += 2 * presence[:, 1]
    activity[:, 1] += presence[:, 0] + presence[:, 3]
    return activity, presence


def test_planted_atoms_are_named_and_noise_is_not():
    generator = torch.Generator().manual_seed(0)
    activity, presence = draw(120, generator)
    names = [str(name(items)) for items in evidence(activity, presence, WORDS, generator)]
    assert names[0] == "cat"
    assert set(names[1].split(", ")) == {"teapot", "top"}
    assert not any(names[2:])


def test_numbers_are_those_of_the_plain_formulas():
    generator = torch.Generator().manual_seed(1)
    activity, presence = (x.double() for x in draw(200, generator))
    found = {item.factor.word: item for item in evidence(activity, presence, WORDS, generator)[0]}
    p = activity[:, 0] / activity.sum(1)
    f = presence[:, 1]
    assert found["cat"].lift == pytest.approx(float(p[f == 1].mean() / p[f == 0].mean()))
    assert found["cat"].explained == pytest.approx(float(torch.corrcoef(torch.stack([p, f]))[0, 1] ** 2))
    assert found["cat"].chance == pytest.approx(1 / 1001)


def test_a_rise_that_all_atoms_share_names_none():
    generator = torch.Generator().manual_seed(2)
    activity, presence = draw(120, generator)
    activity[:, 2:] *= 1 + 5 * presence[:, 2:3]  # "left": everything fires more
    assert not any(evidence(activity, presence, WORDS, generator)[2:])


def test_rows_of_a_group_are_shuffled_inside_it():
    """Without groups, pictures that differ as a whole would pass for an answer to a region."""
    generator = torch.Generator().manual_seed(3)
    region = torch.eye(4).repeat(50, 1)
    activity = torch.rand(200, 30, generator=generator) + 0.5
    activity[:, 7] += 3 * region[:, 2]
    regions = [Factor(word, "region") for word in ("nw", "ne", "sw", "se")]
    names = [str(name(items)) for items in evidence(activity, region, regions, generator, group=4)]
    assert names[7] == "sw"
    assert not any(names[:7] + names[8:])


@pytest.mark.parametrize("images, named", [(IMAGES - 1, False), (IMAGES, True)])
def test_a_name_needs_enough_images_with_the_word_in_which_the_atom_fired(images, named):
    presence = torch.zeros(60, 1)
    presence[:20] = 1
    activity = torch.ones(60, 2)
    activity[:, 0] = 0
    activity[:images, 0] = 9.0
    assert bool(name(evidence(activity, presence, WORDS[:1], torch.Generator().manual_seed(0))[0])) is named


@pytest.mark.parametrize("images, named", [(IMAGES - 1, False), (IMAGES, True)])
def test_many_regions_of_few_images_are_not_enough_for_a_name(images, named):
    region = torch.eye(16).repeat(images, 1)
    activity = torch.rand(16 * images, 5, generator=torch.Generator().manual_seed(0)) + 0.5
    activity[:, 0] += 9 * region[:, 3]
    factors = [Factor(str(place), "region") for place in range(16)]
    names = [name(items) for items in evidence(activity, region, factors, torch.Generator().manual_seed(0), group=16)]
    assert bool(names[0]) is named


def test_near_duplicates_have_one_name_and_one_direction_and_the_strongest_is_none_of_them():
    directions = torch.tensor([[1.0, 0], [-2.0, 0.1], [0, 1.0], [1.0, 0.1], [1.0, 0]])
    names = ["cat", "cat", "cat", "fish", "cat"]
    assert near_duplicates(directions, names, torch.tensor([1.0, 3, 2, 5, 0])) == [1, None, None, None, None]


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match="one column for each of the 4 factors"):
        evidence(torch.rand(5, 3), torch.rand(5, 3), WORDS)


def test_crossed_prompts_are_balanced_and_independent():
    prompts = crossed_prompts(["sks teapot"], ["teapot"], 120, torch.Generator().manual_seed(0))
    assert len({prompt.text for prompt in prompts}) > 100
    factors = sorted({f for p in prompts for f in p.factors}, key=str)
    presence = torch.tensor([[float(f in p.factors) for f in factors] for p in prompts])
    learnt = [f in {Factor("sks teapot", "subject")} for f in factors].index(True)
    assert float(presence[:, learnt].mean()) == 0.5
    for factor in factors:
        assert factor.kind == "place" or factor.word.split()[0] in " ".join(p.text for p in prompts)
    correlation = torch.corrcoef(presence.T)
    other_kind = torch.tensor([[a.kind != b.kind for a in factors] for b in factors])
    assert float(correlation[other_kind].abs().max()) < 0.35  # 4 standard errors of no correlation
    assert {f.word.removesuffix(" background") for f in factors if f.kind == "background"} == set(BACKGROUNDS)


def test_prompts_read_as_moji_reads_them():
    texts = [prompt.text for prompt in crossed_prompts(num=60)]
    assert all(text.startswith("a ") and text.endswith(" background") and "  " not in text for text in texts)
    assert any(" on an orange background" in text for text in texts)
    assert not any("sks" in text for text in texts)


def test_regions_know_what_is_drawn_in_them(scene):
    presence, factors = region_factors([scene], (8, 8))
    by_word = {factor.word: presence[0, :, i].reshape(8, 8) for i, factor in enumerate(factors)}
    assert as_array(scene).shape == (64, 64, 3)
    assert by_word["on the drawing"][4, 4] == 1 and by_word["around the drawing"][0, 0] == 1
    assert by_word["outline of the drawing"][2, 4] == 1
    assert by_word["left side"][:, 0].all() and not by_word["left side"][:, 4].any()
    assert by_word["bottom side"][7].all() and not by_word["bottom side"][3].any()
