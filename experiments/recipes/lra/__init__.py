"""The Long Range Arena, one file for each layer: what all tasks share (`BASE`), and a line or two for each task.

Where a layer's authors published numbers for a task, the line cites them; where they did not, it says "ours, after"
what. Common to all, as in the published code: mean pooling, unless a line says otherwise, Adam with decoupled weight
decay, one learning rate for the filters and another for the rest.

What our training does not do as published, everywhere: weight decay is for matrices alone (published: for all that is
not marked), and the schedule ends with the last step, where some published ones were set for a few percent more steps
than were taken.

s4_code.py     what models built on state-spaces/s4 share: S4D, SGConv, long convolutions
published.py   published results
"""

from ..recipe import Recipe
from . import attention, hyena, mega, multires, s4d, sgconv, tcn, tcnca

#: "lra.TASK.LAYER" -> recipe.
RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for layer in (attention, hyena, mega, multires, s4d, sgconv, tcn, tcnca)
    for recipe in layer.RECIPES
}
