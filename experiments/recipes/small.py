"""The layers of the Long Range Arena at sizes for a CPU: recipes `lra-small.TASK.LAYER`."""

from .recipe import Recipe

#: "lra-small.TASK.LAYER" -> recipe.
RECIPES: dict[str, Recipe] = {}
