"""One file per objective, one face: methods/base.py."""

from adco.config import validation
from adco.config.schema import PretrainConfig
from adco.methods.adco import AdCo
from adco.methods.base import Method
from adco.methods.byol import BYOL
from adco.methods.caco import CaCo
from adco.methods.mochi import MoCHi
from adco.methods.moco import MoCo
from adco.methods.simclr import SimCLR
from adco.methods.simsiam import SimSiam
from adco.methods.swav import SwAV

METHODS = {
    "adco": AdCo,
    "caco": CaCo,
    "moco": MoCo,
    "mochi": MoCHi,
    "simclr": SimCLR,
    "byol": BYOL,
    "simsiam": SimSiam,
    "swav": SwAV,
}


def register(name: str, method: type[Method]) -> None:
    """Make a method known by a name, so that `method: NAME` in a recipe means it; see docs/extending.md."""
    METHODS[name] = method
    validation.CHOICES["method"] = tuple(METHODS)


def build_method(recipe: PretrainConfig) -> Method:
    """The objective that `recipe.method` names, with its encoders and its bank."""
    return METHODS[recipe.method](recipe)
