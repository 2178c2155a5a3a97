"""`atomtune customize`: learn a subject from a few images. Each field of `CustomizeConfig` is a flag and a YAML key."""

import os
from collections.abc import Sequence
from typing import Annotated, Any

from cyclopts import App, Argument, ArgumentCollection, CycloptsError, Parameter
from cyclopts.config import Dict
from cyclopts.help import DefaultFormatter, HelpEntry, HelpPanel

from atomtune.training.config import CustomizeConfig
from atomtune.training.recipes import load_recipe, recipe_for, recipe_kind, recipe_name_for


def customize(config: Annotated[CustomizeConfig, Parameter(name="*")]) -> None:
    """Learn a subject from a few images, with atoms (or LoRA, DoRA, OFT) on a frozen text-to-image transformer.

    The result is a PEFT adapter in OUT/adapter. Options that are given neither as flags nor by --config come from
    atomtune's own recipe for the base, if there is one (`atomtune recipes` lists them). The defaults below are those
    that act with the --base, --config and --total-atoms of this command line.

    On several cards: `accelerate launch -m atomtune customize ...`, and with `--use_fsdp --fsdp_version 2` before the
    -m for a base that does not fit on one of them.
    """
    from atomtune.training import customize, outcome

    summary = customize(config)
    if os.environ.get("RANK", "0") == "0":  # the others of several processes are silent
        print("\n".join(outcome.told(summary, config.out)))


class ActingDefaults(DefaultFormatter):
    """Help in which each option has the value that will act if it is not given: that of --config, of the recipe for
    the base, or the option's own default. `tokens` is the command line without its first word."""

    def __init__(self, tokens: Sequence[str]):
        super().__init__()
        given = _read(tokens)
        config = given.pop("config", None)
        chosen = load_recipe(config) if config is not None else {}
        resolved: dict[str, Any] = {"base": CustomizeConfig.base} | chosen | given
        recipe = recipe_for(resolved["base"], resolved)
        name = recipe_name_for(resolved["base"], recipe_kind(resolved))
        self.acting = {key: (value, f"the recipe {name}") for key, value in recipe.items()}
        self.acting |= {key: (value, str(config)) for key, value in chosen.items()}

    def __call__(self, console: Any, options: Any, panel: HelpPanel) -> None:
        entries = [self._with_acting_default(entry) for entry in panel.entries]
        super().__call__(console, options, panel.copy(entries=entries))

    def _with_acting_default(self, entry: HelpEntry) -> HelpEntry:
        name = entry.positive_names[-1].removeprefix("--").replace("-", "_") if entry.positive_names else ""
        if name == "epochs" and name not in self.acting and "steps" in self.acting:
            return entry.copy(
                default=f"not used, because {self.acting['steps'][1]} gives steps; without it {entry.default}"
            )
        if name not in self.acting:
            return entry
        value, source = self.acting[name]
        own = getattr(CustomizeConfig, name, None)
        if value == own or (isinstance(value, list) and tuple(value) == own):
            return entry
        return entry.copy(default=f"{value}, from {source}" + (f"; without it {own}" if own is not None else ""))


def _read(tokens: Sequence[str]) -> dict[str, Any]:
    """The options of an incomplete command line on which recipes depend; none if it cannot be read, because help is
    given for that too."""
    options = App(help_flags=(), version_flags=())

    @options.default
    def read(
        *,
        config: str | None = None,
        base: str | None = None,
        method: str | None = None,
        total_atoms: int | None = None,
        preserve: bool | None = None,
        steps: int | None = None,
        epochs: int | None = None,
    ) -> None: ...

    try:
        return options.parse_known_args(tokens)[1].arguments
    except CycloptsError:
        return {}


_DECIDING = {"base", "method", "total_atoms", "preserve"}
"""The options on whose values, beside those that are named at all, it depends which recipe acts."""


def _value(argument: Argument) -> Any:
    """The value that was given; of one that cannot be read, which is refused later, None."""
    try:
        return argument.convert()
    except CycloptsError:
        return None


def shipped_recipe(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """The last of cyclopts's configuration sources: the recipe that ships for the base."""
    given = {argument.field_info.name: argument for argument in arguments if argument.tokens}
    named = {name: _value(argument) if name in _DECIDING else None for name, argument in given.items()}
    recipe = recipe_for(str(named.get("base", CustomizeConfig.base)), named)
    Dict(recipe, source="the shipped recipe", use_commands_as_keys=False)(app, commands, arguments)
