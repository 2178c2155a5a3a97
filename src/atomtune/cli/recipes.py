"""`atomtune recipes`: list the settings that ship with atomtune, or print those of one recipe."""


def recipes(name: str | None = None, /) -> None:
    """List the recipes that ship with atomtune, or print one.

    A recipe holds settings for a base. `atomtune customize --config NAME` uses one by its name; without --config, the
    first recipe of the base is used. Those for large bases were never run on real weights, and say so.

    Args:
        name: Print the YAML of this recipe, which can be saved, changed and given as `--config FILE`.
    """
    from textwrap import fill

    from atomtune.training.recipes import UNTRIED, bases_of, load_recipe, recipe_names, recipe_text

    if name is not None:
        print(recipe_text(name), end="")
        return
    for each in recipe_names():
        plain = {
            key: ", ".join(value) if isinstance(value, list) else value for key, value in load_recipe(each).items()
        }
        text = recipe_text(each)
        purpose = text.partition("\n")[0].removeprefix("# ")  # the first line says it
        if others := bases_of(each)[1:]:
            purpose += f" Also for {', '.join(others)}."
        purpose += f" {UNTRIED}" * (UNTRIED in text)
        print(f"{each}\n{fill(purpose, 100, initial_indent='    ', subsequent_indent='    ')}")
        values = "  ".join(f"{key}={value}" for key, value in plain.items())
        print(fill(values, 100, initial_indent="    ", subsequent_indent="    ", break_on_hyphens=False), end="\n\n")
