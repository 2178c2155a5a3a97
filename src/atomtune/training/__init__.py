"""Customize: learn a subject from a few images, with an adapter on a frozen text-to-image transformer."""

from atomtune.training.config import CustomizeConfig
from atomtune.training.recipes import configure, load_recipe, recipe_for, recipe_names
from atomtune.training.run import customize

__all__ = ["CustomizeConfig", "configure", "customize", "load_recipe", "recipe_for", "recipe_names"]
