"""AdCo (Hu et al., CVPR 2021): negatives that are trained against the encoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from adco.config import Recipe
from adco.contrast import Contrast, adversarial_contrast, make_pairs
from adco.encoder import Encoder
from adco.methods.base import BankedMethod, Moment


class AdCo(BankedMethod):
    """The query encoder descends eq. (1), the bank ascends it, the key encoder follows the query encoder."""

    def __init__(self, recipe: Recipe):
        super().__init__(recipe, Encoder(recipe.encoder), make_pairs(len(recipe.views), recipe.contrast.symmetric))

    def play(self, queries: Mapping[int, Tensor], keys: Mapping[int, Tensor], moment: Moment) -> Contrast:
        options, bank = self.contrast, self.bank
        return adversarial_contrast(
            queries, keys, self.pairs, bank.rows, options.tau, options.tau_bank, options.in_batch_negatives,
            bank.options.objective, bank.sharded,
        )  # fmt: skip

    def filling_loss(self, queries: Mapping[int, Tensor], keys: Mapping[int, Tensor]) -> Tensor:
        """`init: train_and_fill`: eq. (1) of the first pair alone, without in-batch negatives, as released."""
        pair, bank = replace(self.pairs[0], weight=1.0), self.bank
        tau = self.contrast.tau
        return adversarial_contrast(queries, keys, (pair,), bank.rows, tau, None, False, sharded=bank.sharded).loss
