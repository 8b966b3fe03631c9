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
    """Each query is classified among its key and the queue; symmetric: the mean of both directions."""

    def __init__(self, recipe: PretrainConfig):
        super().__init__(recipe, Encoder(recipe.encoder), make_pairs(2, recipe.contrast.symmetric))

    def contrastive_loss(
        self, queries: Mapping[int, Tensor], keys: Mapping[int, Tensor], progress: TrainingProgress
    ) -> LossOutput:
        """The loss against the keys and the queue, which does not learn."""
        options, queue = self.contrast, self.bank
        return adversarial_contrast(
            queries, keys, self.pairs, queue.rows, options.tau, None, options.in_batch_negatives,
            sharded=queue.sharded, workspace=queue.workspace,
        )  # fmt: skip

    def update(self, step: StepOutput, progress: TrainingProgress, bank_lr: float) -> None:
        """The newest keys of all ranks replace the oldest rows of the queue."""
        self.bank.enqueue(distributed.all_gather(step.keys), progress.step)
