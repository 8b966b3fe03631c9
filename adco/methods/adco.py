"""AdCo (Hu et al., CVPR 2021): negatives that are trained against the encoder."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from adco.config.schema import PretrainConfig
from adco.losses.adco import adversarial_contrast
from adco.losses.bank_softmax import LossOutput
from adco.losses.pairs import make_pairs
from adco.methods.base import MemoryBankMethod, TrainingProgress
from adco.models.encoder import Encoder


class AdCo(MemoryBankMethod):
    """The encoder descends eq. (1), the bank ascends it at its own temperature, the key encoder follows the encoder."""

    def __init__(self, recipe: PretrainConfig):
        super().__init__(recipe, Encoder(recipe.encoder), make_pairs(len(recipe.views), recipe.contrast.symmetric))

    def contrastive_loss(
        self, queries: Mapping[int, Tensor], keys: Mapping[int, Tensor], progress: TrainingProgress
    ) -> LossOutput:
        """The loss of eq. (1), and the gradient of the bank."""
        options, bank = self.contrast, self.bank
        return adversarial_contrast(
            queries, keys, self.pairs, bank.rows, options.tau, options.tau_bank, options.in_batch_negatives,
            bank.options.objective, bank.sharded, bank.workspace,
        )  # fmt: skip

    def filling(self) -> AdCo:
        """The method that `bank.init: train_and_fill` trains while the bank is filled, as released: the first pair
        alone, without in-batch negatives. It shares encoders and bank with this one."""
        twin = copy.copy(self)
        twin.set_pairs((replace(self.pairs[0], weight=1.0),))
        twin.contrast = replace(self.contrast, in_batch_negatives=False)
        return twin
