"""Every base has a recipe, and every recipe for a large base trains on its base in miniature."""

import pytest

import atomtune
from atomtune.planning import known_bases
from atomtune.training import configure, recipe_names
from atomtune.training.recipes import UNTRIED, bases_of, load_recipe, recipe_for, recipe_name_for, recipe_text
from tests.bases.families import BASES, SIZE
from tests.bases.test_families import every_base, picture

OF_LARGE_BASES = [name for name in recipe_names() if not name.startswith("moji")]
OTHER_WEIGHTS = {"stable-diffusion-3": "Stable Diffusion 3"}  # the table names those of 3.5


@every_base
def test_the_weights_that_people_use_have_a_recipe(base):
    name = recipe_name_for(base.real)
    assert name is not None and UNTRIED in recipe_text(name)
    assert recipe_for(base.real) == load_recipe(name) | {"base": base.real}


def test_so_has_every_base_that_is_known():
    assert [name for name in known_bases() if recipe_name_for(name) is None] == []


def test_a_base_is_named_by_recipes_of_one_base_alone():
    """Of which the first acts; a variant is not named twice."""
    found = [other for name in recipe_names() for other in bases_of(name)[1:]]
    assert len(found) == len({*found}) and not {*found} & {load_recipe(name)["base"] for name in recipe_names()}


@pytest.mark.parametrize("name", OF_LARGE_BASES)
def test_a_recipe_trains_on_its_base_in_miniature(name, tmp_path):
    named = bases_of(recipe_name_for(load_recipe(name)["base"]) or "")
    base = next(each for each in BASES if each.real in named or each.name == OTHER_WEIGHTS.get(name))
    base.pipe().save_pretrained(tmp_path / "base")
    (tmp_path / "images").mkdir()
    picture().save(tmp_path / "images" / "a.png")
    options = {"resolution": SIZE, "steps": 2, "class_name": "dog", "sample_every": 0, "sample_prompts": ("a sks dog",)}
    folders = {"images": tmp_path / "images", "base": str(tmp_path / "base"), "out": tmp_path / "run"}
    summary = atomtune.customize(configure(name, **options, **folders, device="cpu"))
    assert summary["steps"] == 2 and summary["loss"] > 0
