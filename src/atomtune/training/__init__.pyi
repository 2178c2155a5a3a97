from .config import CustomizeConfig as CustomizeConfig
from .recipes import configure as configure
from .recipes import load_recipe as load_recipe
from .recipes import recipe_for as recipe_for
from .recipes import recipe_names as recipe_names
from .run import customize as customize
