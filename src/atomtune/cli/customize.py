"""`atomtune customize`: learn a subject from a few images. Each field of `CustomizeConfig` is a flag and a YAML key."""

import os
from typing import Annotated

from cyclopts import App, ArgumentCollection, Parameter
from cyclopts.config import Dict

from atomtune.training.config import CustomizeConfig
from atomtune.training.recipes import FEW_ATOMS, recipe_for


def customize(config: Annotated[CustomizeConfig, Parameter(name="*")]) -> None:
    """Learn a subject from a few images, with atoms (or LoRA, DoRA, OFT) on a frozen text-to-image transformer.

    The result is a PEFT adapter in OUT/adapter. Options that are given neither as flags nor by --config come from
    atomtune's own recipe for the base, if there is one.
    """
    from atomtune.training import customize, outcome

    summary = customize(config)
    if os.environ.get("RANK", "0") == "0":  # the others of several processes are silent
        print("\n".join(outcome.told(summary, config.out)))


def shipped_recipe(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """The last of cyclopts's configuration sources: the recipe that ships for the base."""
    given = {argument.field_info.name: argument.tokens for argument in arguments if argument.tokens}
    base = given["base"][0].value if "base" in given else CustomizeConfig.base
    few = any(token.implicit_value is not None for token in given.get("total_atoms", ()))  # None: null in YAML
    recipe = recipe_for(base, given, FEW_ATOMS if few else "")
    Dict(recipe, source="the shipped recipe", use_commands_as_keys=False)(app, commands, arguments)
