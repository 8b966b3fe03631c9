"""One file per objective, one face: `forward(views) -> Step`, `update(step, bank_lr)`, and how to fill a bank."""

from torch import nn

from adco.config import Recipe
from adco.methods.adco import AdCo


def build_method(recipe: Recipe) -> nn.Module:
    """The objective that `recipe.method` names, with its encoders and its bank."""
    return {"adco": AdCo}[recipe.method](recipe)
