"""MoCo v2 (Chen et al., 2020): negatives are a queue of past keys."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from adco.config.schema import Recipe
from adco.losses.adco import adversarial_contrast
from adco.losses.bank_softmax import Contrast
from adco.losses.pairs import make_pairs
from adco.methods.base import BankedMethod, Moment, Step
from adco.models.encoder import Encoder
from adco.utils import distributed


class MoCo(BankedMethod):
    """The query of one view finds its key among the queue's; symmetric: and the other way round, the mean of both."""

    def __init__(self, recipe: Recipe):
        super().__init__(recipe, Encoder(recipe.encoder), make_pairs(2, recipe.contrast.symmetric))

    def play(self, queries: Mapping[int, Tensor], keys: Mapping[int, Tensor], moment: Moment) -> Contrast:
        options, queue = self.contrast, self.bank
        return adversarial_contrast(
            queries, keys, self.pairs, queue.rows, options.tau, None, options.in_batch_negatives, sharded=queue.sharded
        )

    def update(self, step: Step, moment: Moment, bank_lr: float) -> None:
        """The newest keys of all ranks take the places of the oldest."""
        self.bank.enqueue(distributed.gather(step.keys), moment.step)
