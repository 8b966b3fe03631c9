"""CaCo (Wang et al., TPAMI 2022): positives are learned too, cooperatively, in the bank the negatives come from."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from adco.config.schema import PretrainConfig
from adco.losses.bank_softmax import LossOutput
from adco.losses.caco import cooperative_contrast
from adco.losses.pairs import Pair
from adco.methods.base import MemoryBankMethod, TrainingProgress
from adco.models.encoder import Encoder


class CaCo(MemoryBankMethod):
    """The positive of a query is the bank row nearest to its key; the bank descends through it, ascends elsewhere."""

    def __init__(self, recipe: PretrainConfig):
        super().__init__(recipe, Encoder(recipe.encoder), make_pairs(len(recipe.views)))

    def contrastive_loss(
        self, queries: Mapping[int, Tensor], keys: Mapping[int, Tensor], moment: TrainingProgress
    ) -> LossOutput:
        options, bank = self.contrast, self.bank
        return cooperative_contrast(queries, keys, self.pairs, bank.rows, options.tau, options.tau_bank, bank.sharded)


def make_pairs(views: int) -> tuple[Pair, ...]:
    """The two large views, 0 and 1, are the keys of all other views.

    Two views: both losses, summed, as released; more: the mean over the large pairs plus the mean over the small ones.
    """
    large = ((0, 1), (1, 0))
    if views == 2:
        return tuple(Pair(query, key, 1.0) for query, key in large)
    small = tuple((query, key) for query in range(2, views) for key in (0, 1))
    return tuple(Pair(query, key, 1 / len(group)) for group in (large, small) for query, key in group)
