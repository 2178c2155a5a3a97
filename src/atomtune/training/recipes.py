"""Recipes: YAML files of options, some of which ship with atomtune, and how a run's configuration is made from them.

options > the YAML that was named > atomtune's recipe for the base > the defaults of `CustomizeConfig`
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Any

from atomtune.errors import UserError
from atomtune.files import expanded
from atomtune.parsing import parse_yaml
from atomtune.training.config import LENGTH, CustomizeConfig, convert

RECIPES = resources.files("atomtune.training") / "recipes"
FEW_ATOMS, ONE_IMAGE, OTHER_METHODS = "few-atoms", "one-image", "lora"
"""Endings of the names of recipes for a small `total_atoms`, a single image, and LoRA, DoRA or OFT."""
ALSO_FOR = "also_for"
"""Key of a recipe: further bases that it acts for, such as other sizes of its `base`. It is no option of a run."""
UNTRIED = "Never run on real weights."
"""In the first lines of a recipe that was made from what others set."""


def configure(config: str | Path | None = None, **options: Any) -> CustomizeConfig:
    """The resolved configuration: `options` win over the YAML `config` (a file, or the name of a shipped recipe),
    which wins over atomtune's recipe for the base, which wins over the defaults."""
    given = (load_recipe(config) if config is not None else {}) | options
    known = [field.name for field in dataclasses.fields(CustomizeConfig)]
    if unknown := sorted(given.keys() - set(known)):
        raise UserError(f"unknown option {', '.join(unknown)}: expected some of {', '.join(known)}.")
    given = _converted(given)
    values = _converted(recipe_for(given.get("base", CustomizeConfig.base), given)) | given
    if missing := [name for name in ("images", "out") if name not in values]:
        raise UserError(f"{', '.join(missing)} missing: a run needs images and out.")
    return CustomizeConfig(**values)


def _converted(options: Mapping[str, Any]) -> dict[str, Any]:
    kinds = typing.get_type_hints(CustomizeConfig)
    return {name: convert(name, kinds[name], value) for name, value in options.items()}


def recipe_names(base: str | None = None) -> list[str]:
    """Names of the shipped recipes, or of those for one base; those of the base that ships first."""
    names = [file.name.removesuffix(".yaml") for file in RECIPES.iterdir() if file.name.endswith(".yaml")]
    names.sort(key=lambda name: (not name.startswith("moji"), name))
    return [name for name in names if base is None or base in bases_of(name)]


def load_recipe(name_or_path: str | Path) -> dict[str, Any]:
    """Options from a YAML file or a shipped recipe. Raises `UserError` if it cannot be read."""
    return {key: value for key, value in _read(name_or_path).items() if key != ALSO_FOR}


@cache
def bases_of(name: str) -> tuple[str, ...]:
    """The bases for which a shipped recipe acts."""
    recipe = _read(name)
    return (recipe["base"], *recipe.get(ALSO_FOR, []))


def _read(name_or_path: str | Path) -> dict[str, Any]:
    shipped = str(name_or_path) in recipe_names()
    file = RECIPES / f"{name_or_path}.yaml" if shipped else expanded(name_or_path)
    try:
        options = parse_yaml(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(
            f"the configuration {str(name_or_path)!r} could not be read ({error.strerror}): expected a YAML file or "
            f"one of the recipes {', '.join(recipe_names())}."
        ) from error
    except ValueError as error:
        raise UserError(f"{name_or_path} is not valid YAML ({error}).") from error
    if not isinstance(options, dict) or not all(isinstance(name, str) for name in options):
        raise UserError(f"{name_or_path} holds no options: expected lines such as 'steps: 250'.")
    if "command" in options:  # see `storage.runs`
        raise UserError(
            f"{name_or_path} holds what `atomtune {options['command']}` was given, and no settings of a training: to "
            f"train its adapter further, give --init-adapter {Path(name_or_path).parent}."
        )
    return options


def recipe_kind(given: Mapping[str, Any]) -> str:
    """Which of a base's recipes the options of a user are for."""
    if given.get("method", "atoms") != "atoms":
        return OTHER_METHODS
    return "" if given.get("total_atoms") is None else FEW_ATOMS


def recipe_name_for(base: str, kind: str = "") -> str | None:
    """The name of atomtune's recipe for a base, if there is one: the one whose name ends with `kind`, or else the
    first."""
    names = recipe_names(base)
    return next((name for name in names if name.endswith(kind)), names[0] if names else None)


def recipe_for(base: str, given: Mapping[str, Any] = MappingProxyType({}), kind: str | None = None) -> dict[str, Any]:
    """The options of atomtune's recipe for a base (see `recipe_name_for`), or none.

    Left out is what does not go with `given`, the options that the user named: the recipe's `LENGTH` if they have one,
    and its floor if they switch off `preserve`, on whose prompts it is measured. They also decide on `kind`, by
    default.
    """
    name = recipe_name_for(base, recipe_kind(given) if kind is None else kind)
    recipe = load_recipe(name) | {"base": base} if name else {}
    left_out = {*LENGTH} if {*LENGTH} & {*given} else set()
    if given.get("preserve") is False:
        left_out.add("floor")
    return {key: value for key, value in recipe.items() if key not in left_out}


def recipe_text(name: str) -> str:
    """The YAML of a shipped recipe, with its comments. Raises `UserError` if there is none of this name."""
    if name not in recipe_names():
        raise UserError(f"there is no recipe {name!r}: expected one of {', '.join(recipe_names())}.")
    return (RECIPES / f"{name}.yaml").read_text(encoding="utf-8")
