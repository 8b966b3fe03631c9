"""MoCo v2 (Chen et al., 2020): negatives are a queue of past keys."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from adco.config.schema import PretrainConfig
from adco.losses.adco import adversarial_contrast
from adco.losses.bank_softmax import LossOutput
from adco.losses.pairs import make_pairs
from adco.methods.base import MemoryBankMethod, StepOutput, TrainingProgress
from adco.models.encoder import Encoder
from adco.utils import distributed


class MoCo(MemoryBankMethod):
    """The query of one view finds its key among the queue's; symmetric: and the other way round, the mean of both."""

    def __init__(self, recipe: PretrainConfig):
        super().__init__(recipe, Encoder(recipe.encoder), make_pairs(2, recipe.contrast.symmetric))

    def contrastive_loss(
        self, queries: Mapping[int, Tensor], keys: Mapping[int, Tensor], moment: TrainingProgress
    ) -> LossOutput:
        options, queue = self.contrast, self.bank
        return adversarial_contrast(
            queries, keys, self.pairs, queue.rows, options.tau, None, options.in_batch_negatives, sharded=queue.sharded
        )

    def update(self, step: StepOutput, moment: TrainingProgress, bank_lr: float) -> None:
        """The newest keys of all ranks take the places of the oldest."""
        self.bank.enqueue(distributed.all_gather(step.keys), moment.step)
