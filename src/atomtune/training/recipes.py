"""Recipes: YAML files of options, some of which ship with atomtune, and how a run's configuration is made from them.

options > the YAML that was named > atomtune's recipe for the base > the defaults of `CustomizeConfig`
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Collection
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from atomtune.errors import UserError
from atomtune.files import expanded
from atomtune.training.config import LENGTH, CustomizeConfig, convert

RECIPES = resources.files("atomtune.training") / "recipes"
FEW_ATOMS, ONE_IMAGE = "few-atoms", "one-image"
"""Endings of the names of recipes for a small `total_atoms`, and for a single image."""


def configure(config: str | Path | None = None, **options: Any) -> CustomizeConfig:
    """The resolved configuration: `options` win over the YAML `config` (a file, or the name of a shipped recipe),
    which wins over atomtune's recipe for the base, which wins over the defaults."""
    given = (load_recipe(config) if config is not None else {}) | options
    kind = "" if given.get("total_atoms") is None else FEW_ATOMS
    recipe = recipe_for(given.get("base", CustomizeConfig.base), given, kind)
    if given.get("preserve") is False or given.get("method", "atoms") != "atoms":
        recipe.pop("floor", None)  # which is measured on the other prompts, and belongs to atoms
    values = recipe | given
    known = [field.name for field in dataclasses.fields(CustomizeConfig)]
    if unknown := sorted(values.keys() - set(known)):
        raise UserError(f"unknown option {', '.join(unknown)}: expected some of {', '.join(known)}.")
    if missing := [name for name in ("images", "class_name", "out") if name not in values]:
        raise UserError(f"{', '.join(missing)} missing: a run needs images, class_name and out.")
    kinds = typing.get_type_hints(CustomizeConfig)
    return CustomizeConfig(**{name: convert(name, kinds[name], value) for name, value in values.items()})


def recipe_names() -> list[str]:
    """Names of the shipped recipes."""
    return sorted(file.name.removesuffix(".yaml") for file in RECIPES.iterdir() if file.name.endswith(".yaml"))


def load_recipe(name_or_path: str | Path) -> dict[str, Any]:
    """Options from a YAML file or a shipped recipe. Raises `UserError` if it cannot be read."""
    shipped = str(name_or_path) in recipe_names()
    file = RECIPES / f"{name_or_path}.yaml" if shipped else expanded(name_or_path)
    try:
        options = yaml.safe_load(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(
            f"the configuration {str(name_or_path)!r} could not be read ({error.strerror}): expected a YAML file or "
            f"one of the recipes {', '.join(recipe_names())}."
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{name_or_path} is not valid YAML ({' '.join(str(error).split())}).") from error
    if not isinstance(options, dict):
        raise UserError(f"{name_or_path} holds no options: expected lines such as 'steps: 250'.")
    if "command" in options:  # see `storage.runs`
        raise UserError(
            f"{name_or_path} holds what `atomtune {options['command']}` was given, and no settings of a training: to "
            f"train its adapter further, give --init-adapter {Path(name_or_path).parent}."
        )
    return options


def recipe_name_for(base: str, kind: str = "") -> str | None:
    """The name of atomtune's recipe for a base, if there is one: the first, or the one whose name ends with `kind`."""
    names = (name for name in recipe_names() if name.endswith(kind) and load_recipe(name)["base"] == base)
    return next(names, None)


def recipe_for(base: str, given: Collection[str] = (), kind: str = "") -> dict[str, Any]:
    """The options of atomtune's recipe for a base (see `recipe_name_for`), or none.

    The recipe's `LENGTH` is left out if `given`, the options that the user named, has one.
    """
    name = recipe_name_for(base, kind)
    recipe = load_recipe(name) if name else {}
    return {key: value for key, value in recipe.items() if key not in LENGTH or not {*LENGTH} & {*given}}


def recipe_text(name: str) -> str:
    """The YAML of a shipped recipe, with its comments. Raises `UserError` if there is none of this name."""
    if name not in recipe_names():
        raise UserError(f"there is no recipe {name!r}: expected one of {', '.join(recipe_names())}.")
    return (RECIPES / f"{name}.yaml").read_text(encoding="utf-8")
