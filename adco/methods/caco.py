"""CaCo (Wang et al., TPAMI 2023): positives are learned too, cooperatively, in the bank the negatives come from."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from adco.config.schema import PretrainConfig
from adco.losses.bank_softmax import LossOutput
from adco.losses.caco import cooperative_contrast
from adco.losses.pairs import make_caco_pairs
from adco.methods.base import MemoryBankMethod, TrainingProgress
from adco.models.encoder import Encoder


class CaCo(MemoryBankMethod):
    """The positive of a query is the bank row nearest to its key; the bank lowers the loss through the positives and
    raises it through all other rows."""

    def __init__(self, recipe: PretrainConfig):
        super().__init__(recipe, Encoder(recipe.encoder), make_caco_pairs(len(recipe.views)))

    def contrastive_loss(
        self, queries: Mapping[int, Tensor], keys: Mapping[int, Tensor], progress: TrainingProgress
    ) -> LossOutput:
        """The loss with the bank's nearest rows as positives, and the gradient of the bank."""
        options, bank = self.contrast, self.bank
        return cooperative_contrast(
            queries, keys, self.pairs, bank.rows, options.tau, options.tau_bank, bank.sharded, bank.workspace
        )
