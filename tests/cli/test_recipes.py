"""`atomtune recipes`, and the defaults that `atomtune customize --help` shows."""

import re

import pytest
import yaml

from atomtune.cli import main
from atomtune.training import load_recipe, recipe_names
from atomtune.training.config import CustomizeConfig
from atomtune.training.recipes import ALSO_FOR, UNTRIED


def printed(capsys, *words: str) -> str:
    capsys.readouterr()
    main([*words])
    return capsys.readouterr().out


def test_every_recipe_is_listed_with_its_base_what_it_is_for_and_its_settings(capsys):
    blocks = dict(block.split("\n", 1) for block in printed(capsys, "recipes").strip().split("\n\n"))
    assert list(blocks) == recipe_names()
    for name, block in blocks.items():
        words = " ".join(block.split())
        purpose = words.partition(" base=")[0]
        assert len(purpose.split()) > 5 and words[0].isupper()
        assert purpose.endswith(UNTRIED) == (not name.startswith("moji"))
        for key, value in load_recipe(name).items():
            assert f"{key}={', '.join(value) if isinstance(value, list) else value}" in words


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_is_printed_as_yaml_that_can_be_a_configuration(name, capsys):
    text = printed(capsys, "recipes", name)
    options = yaml.safe_load(text)
    options.pop(ALSO_FOR, None)
    assert options == load_recipe(name) and text.startswith("# ")


def test_a_recipe_that_is_not_there_is_refused_with_the_names_of_all(capsys):
    with pytest.raises(SystemExit):
        main(["recipes", "mojo"])
    assert "there is no recipe 'mojo': expected one of moji, moji-few-atoms," in capsys.readouterr().err


def defaults(capsys, *words: str) -> dict[str, str]:
    """What --help shows as default, by option."""
    box = printed(capsys, "customize", *words, "--help").splitlines()
    text = "\n".join(line.strip("│ ").strip() for line in box)
    found = {}
    for part in re.split(r"\n(?=--)", text):
        if match := re.search(r"\[default: ([^]]*)\]", " ".join(part.split())):
            found[part.split()[0].removeprefix("--").replace("-", "_")] = match[1]
    return found


MOJI, FEW, LORA, PIXART = (load_recipe(name) for name in ("moji", "moji-few-atoms", "moji-lora", "pixart-sigma"))


@pytest.mark.parametrize(
    ("words", "recipe", "source"),
    [
        ((), MOJI, "the recipe moji"),
        (("photos", "--total-atoms=24"), FEW, "the recipe moji-few-atoms"),
        (("photos", "--method", "lora"), LORA, "the recipe moji-lora"),
        (("--config", "pixart-sigma"), PIXART, "pixart-sigma"),
        (("--base", PIXART["base"], "photos"), PIXART, "the recipe pixart-sigma"),
    ],
)
def test_help_shows_the_values_that_will_act_and_where_they_come_from(capsys, words, recipe, source):
    shown = defaults(capsys, *words)
    for name in ("learning_rate", "batch_size", "density", "mix_first"):
        own = getattr(CustomizeConfig, name)
        acting = recipe.get(name, own)
        assert shown[name] == (str(own) if acting == own else f"{acting}, from {source}; without it {own}")
    length = f"not used, because {source} gives steps; without it 15" if "steps" in recipe else "15"
    assert shown["epochs"] == length
    assert shown.get("steps") == (f"{recipe['steps']}, from {source}" if "steps" in recipe else None)


def test_help_of_a_base_without_a_recipe_and_of_a_given_length(capsys):
    assert defaults(capsys, "--base", "elsewhere")["learning_rate"] == "0.0001"
    assert defaults(capsys, "--epochs", "3")["epochs"] == "15"
    assert defaults(capsys)["learning_rate"].startswith("0.008")  # nothing is left of another call


def test_help_of_a_configuration_of_ones_own(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text("learning_rate: 0.5\nseed: 0\n")
    shown = defaults(capsys, "--config", "run.yaml")
    assert shown["learning_rate"] == "0.5, from run.yaml; without it 0.0001"
    assert (shown["seed"], shown["steps"]) == ("0", "200, from the recipe moji")


@pytest.mark.parametrize("tokens", [("--total-atoms", "many"), ("--base",), ("--steps", "few")])
def test_help_is_given_for_a_command_line_that_cannot_be_read(capsys, tokens):
    assert defaults(capsys, *tokens) == defaults(capsys)
