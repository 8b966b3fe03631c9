"""One file per objective, one face: methods/base.py."""

from adco.config import Recipe
from adco.methods.adco import AdCo
from adco.methods.base import Method
from adco.methods.caco import CaCo
from adco.methods.moco import MoCo

METHODS = {"adco": AdCo, "caco": CaCo, "moco": MoCo}


def build_method(recipe: Recipe) -> Method:
    """The objective that `recipe.method` names, with its encoders and its bank."""
    return METHODS[recipe.method](recipe)
