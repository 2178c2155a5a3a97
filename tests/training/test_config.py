"""Options, recipes, and which of them wins."""

import dataclasses

import pytest
import yaml

from atomtune.errors import UserError
from atomtune.planning import known_bases
from atomtune.sizes import Size
from atomtune.training import configure, load_recipe, recipe_for, recipe_names
from atomtune.training.config import LENGTH
from atomtune.training.recipes import FEW_ATOMS, ONE_IMAGE, UNTRIED, recipe_text

GIVEN = {"images": "photos", "class_name": "teapot", "out": "runs/teapot"}


def test_moji_has_its_recipe_by_default():
    config = configure(**GIVEN)
    assert (config.base, config.method, config.target_modules) == ("moji", "atoms", ("attn1.to_v", "attn2.to_v"))
    assert (config.num_atoms, config.density, config.preserve, config.floor) == (256, 0.04, True, 1.0)
    assert (config.learning_rate, config.steps, config.batch_size, config.optimizer) == (8e-3, 200, 5, "AdamW")


@pytest.mark.parametrize("method", ["lora", "dora", "oft"])
def test_another_method_is_trained_as_the_atoms_are_but_on_all_of_attention(method):
    own, other = configure(**GIVEN), configure(**GIVEN, method=method)
    atoms = {name: getattr(own, name) for name in ("method", "floor", "target_modules", "learning_rate")}
    assert dataclasses.replace(other, **atoms) == own
    assert other.learning_rate == 4e-3  # its best (experiments/drift/README.md)
    assert other.target_modules == ("attn1", "attn2")


def test_without_other_prompts_there_is_no_floor_to_measure():
    assert configure(**GIVEN, preserve=False).floor == 0.0


def test_few_atoms_over_the_model_have_a_recipe_of_their_own():
    config, few = configure(**GIVEN, total_atoms=24), load_recipe("moji-few-atoms")
    assert (config.learning_rate, config.density) == (few["learning_rate"], few["density"])
    assert config.total_atoms == 24
    assert configure(**GIVEN, total_atoms=None) == configure(**GIVEN)
    assert configure(**GIVEN, total_atoms=24, base="some/folder").learning_rate == 1e-4


@pytest.mark.parametrize("kind", ["", FEW_ATOMS, ONE_IMAGE])
def test_a_recipe_says_no_length_where_steps_or_epochs_are_given(kind):
    assert "steps" in recipe_for("moji", {}, kind)
    for option in LENGTH:
        assert recipe_for("moji", {option: 7, "seed": 0}, kind).keys().isdisjoint(LENGTH)


def test_another_base_gets_the_papers_settings_and_not_mojis():
    config = configure(**GIVEN, base="some/folder")
    assert (config.learning_rate, config.steps, config.epochs) == (1e-4, None, 15)


@pytest.mark.parametrize("name", recipe_names())
def test_every_shipped_recipe_is_a_valid_configuration(name):
    recipe = load_recipe(name)
    config = configure(name, **GIVEN)
    assert {key: config.to_dict()[key] for key in recipe} == recipe


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_says_so_in_its_first_lines_if_it_was_never_run(name):
    moji = load_recipe(name)["base"] == "moji"
    assert any(UNTRIED in line for line in recipe_text(name).splitlines()[:3]) == (not moji)


@pytest.mark.parametrize("name", [name for name in recipe_names() if not name.startswith("moji")])
def test_the_base_of_a_recipe_is_one_that_can_be_planned(name):
    assert load_recipe(name)["base"] in known_bases()


def test_a_recipe_acts_for_its_base_and_every_method():
    for method in ("atoms", "lora"):
        config = configure(**GIVEN, base="black-forest-labs/FLUX.1-dev", method=method)
        assert (config.steps, config.gradient_accumulation_steps, config.method) == (500, 4, method)
        assert config.resolution == Size(512, 512)


def test_the_papers_settings_ship():
    papers = {name: load_recipe(name) for name in recipe_names() if name.startswith("pixart-sigma")}
    assert {recipe["epochs"] for recipe in papers.values()} == {15, 60}
    assert {recipe["density"] for recipe in papers.values()} == {0.02, 0.04}
    assert {recipe["optimizer"] for recipe in papers.values()} == {"AdamW", "CAME"}
    for recipe in papers.values():
        assert (recipe["learning_rate"], recipe["num_atoms"], recipe["target_modules"]) == (1e-4, 256, ["attn1"])
    assert recipe_for("PixArt-alpha/PixArt-Sigma-XL-2-1024-MS") == papers["pixart-sigma"]


def test_options_win_over_the_file_which_wins_over_the_recipe(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("learning_rate: 0.5\nnum_atoms: 64\n")
    config = configure(file, **GIVEN, num_atoms=32)
    assert (config.learning_rate, config.num_atoms, config.steps) == (0.5, 32, 200)


def test_yaml_numbers_in_scientific_notation(tmp_path):
    (tmp_path / "run.yaml").write_text("learning_rate: 1e-4\n")  # text, says YAML 1.1
    assert configure(tmp_path / "run.yaml", **GIVEN).learning_rate == 1e-4


def test_a_tilde_is_the_home_folder_in_every_path(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    lines = "images: ~/photos\nout: ~/run\nbase: ~/base\ninit_adapter: ~/adapter\nclass_name: ~dog\n"
    (tmp_path / "run.yaml").write_text(lines, encoding="utf-8-sig")  # as Windows editors save it
    config = configure("~/run.yaml")
    assert (config.images, config.out, config.init_adapter) == tuple(
        tmp_path / name for name in ("photos", "run", "adapter")
    )
    assert (config.base, config.class_name) == (str(tmp_path / "base"), "~dog")
    assert configure(**GIVEN | {"out": "~nobody-of-that-name/x"}).out.parts == ("~nobody-of-that-name", "x")


def test_epochs_replace_the_recipes_steps():
    assert configure(**GIVEN, epochs=3).steps is None


def test_the_resolved_configuration_survives_yaml():
    config = configure(**GIVEN, layers_to_transform=(0, 2), sample_prompts=("a sks teapot on snow",))
    assert configure(**yaml.safe_load(yaml.safe_dump(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"steps": "many"}, "steps must be a whole number, got 'many'."),
        ({"steps": True}, "steps must be a whole number, got True."),
        ({"density": "thin"}, "density must be a number, got 'thin'."),
        ({"preserve_weight": "inf"}, "preserve_weight must be a number, got inf."),
        ({"target_modules": "attn1"}, "target_modules must be a list, got 'attn1'."),
        ({"layers_to_transform": ["first"]}, "layers_to_transform must be a whole number, got 'first'."),
        ({"mix_first": "perhaps"}, "mix_first must be true or false, got 'perhaps'."),
        ({"class_name": 3}, "class_name must be text, got 3."),
        ({"steps": -5}, "steps must be at least 1, got -5."),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0."),
        ({"density": 4}, "density must be in (0, 1], got 4. Did you mean 0.04 (4 %)?"),
        ({"density": 0}, "density must be in (0, 1], got 0."),
        ({"seed": 10**20}, "seed must be a whole number from 0 to 2**64 - 1, got 100000000000000000000."),
        ({"seed": -1}, "seed must be a whole number from 0 to 2**64 - 1, got -1."),
        (
            {"seed": 2**64 - 1, "prior_preservation": True},
            "seed (and 49 after it) must be a whole number from 0 to 2**64 - 1, got 18446744073709551615.",
        ),
        ({"learning_rate": -1}, "learning_rate must be above zero, got -1."),
        ({"caption_dropout": 1}, "caption_dropout must be in [0, 1), got 1."),
        ({"method": "magic"}, "method must be one of atoms, lora, dora, oft, got 'magic'."),
        ({"token": " "}, "token and class_name must be words, got an empty one: the caption is 'a TOKEN CLASS_NAME'."),
        (
            {"token": "<v>"},
            "'<v>' in '<v>' would be lost: caption cleaning parses HTML and strips it; use a plain rare word such as "
            "'sks'.",
        ),
    ],
)
def test_bad_values_are_refused_in_a_sentence(options, sentence):
    with pytest.raises(UserError) as error:
        configure(**GIVEN | options)
    assert str(error.value) == sentence


def test_unknown_and_missing_options_are_named():
    with pytest.raises(UserError, match="unknown option lerning_rate: expected some of images, class_name"):
        configure(**GIVEN, lerning_rate=1)
    with pytest.raises(UserError, match="out missing"):
        configure(images="photos")


@pytest.mark.parametrize("text", ["steps: [1", "- a list", "\xff"])
def test_broken_yaml_is_refused(tmp_path, text):
    file = tmp_path / "run.yaml"
    file.write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=r"run\.yaml"):
        load_recipe(file)


def test_a_missing_configuration_lists_the_recipes():
    with pytest.raises(UserError, match=r"one of the recipes moji, moji-few-atoms, .* flux\.1-dev, flux\.2-dev,"):
        load_recipe("nowhere.yaml")
