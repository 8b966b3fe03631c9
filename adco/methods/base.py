"""The face of every objective, and what those with a key encoder share. Shapes: B images a rank, D embedding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from adco.config.schema import ComputeConfig, PretrainConfig
from adco.losses.bank_softmax import BankGradient, LossOutput
from adco.losses.pairs import Pair
from adco.models.batch_norm import replace_norms
from adco.models.encoder import Encoder, make_key_encoder, momentum_update, paired_parameters
from adco.models.memory_bank import MemoryBank
from adco.utils import distributed, philox
from adco.utils.device import set_arithmetic, upload
from adco.utils.errors import UserError
from adco.utils.schedules import cosine

PRECISION = {"float32": None, "tf32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class TrainingProgress:
    """When in the run: `step` steps are done of `steps`."""

    step: int
    steps: int
    steps_per_epoch: int

    @property
    def epoch(self) -> float:
        return self.step / self.steps_per_epoch


@dataclass(frozen=True)
class StepOutput:
    """What an objective leaves behind.

    loss: this rank's scalar, with gradient; scalars: what to report
    queries, keys: (B, D) unit rows of one pair of views, for the health of the embedding and for a queue
    ascent: along which the bank's rows move, where they learn
    """

    loss: Tensor
    scalars: dict[str, Tensor]
    queries: Tensor
    keys: Tensor
    bank_gradient: BankGradient | None = None


class Method(nn.Module):
    """An objective in four parts: `encoder` (trained), `targets` (without gradient), `objective`, `update`.

    encoder: list of views (B, 3, S, S) -> list of rows (B, ·), for the views in `query_views`
    """

    def __init__(self, recipe: PretrainConfig, encoder: Encoder, pairs: Sequence[Pair]):
        super().__init__()
        options = recipe.encoder
        self.encoder = replace_norms(encoder, options.batch_norm == "sync", options.norm_splits)
        self.bank = self.key_encoder = None  # of the methods that have them
        self.sizes = {view.px for view in recipe.views}
        self.set_pairs(pairs)

    def to_device(self, compute: ComputeConfig, device: torch.device) -> Method:
        """The method on the device, its encoders in the precision and memory format of `compute`. Raises UserError."""
        for asked, key in ((compute.cuda_graphs, "cuda_graphs=true"), (compute.precision == "tf32", "precision=tf32")):
            if asked and device.type != "cuda":
                raise UserError(f"recipe: compute.{key} needs an NVIDIA GPU, and this is {device.type}; leave it out")
        set_arithmetic(device, compute.precision)
        memory_format = torch.channels_last if compute.channels_last else torch.contiguous_format
        self.to(device, memory_format=memory_format)
        encoders = [encoder for encoder in (self.encoder, self.key_encoder) if encoder is not None]
        for encoder in encoders:
            encoder.precision, encoder.memory_format = PRECISION[compute.precision], memory_format
            if compute.compile or compute.cuda_graphs:
                # a graph for each size of views: one for all would carry sizes as symbols, which costs speed
                encoder.backbone.compile(mode="reduce-overhead" if compute.cuda_graphs else None, dynamic=False)
        if compute.compile or compute.cuda_graphs:
            allow_graphs(2 * len(self.sizes) * len(encoders))  # with gradient and, where micro-batches are, without
        return self

    def set_pairs(self, pairs: Sequence[Pair]) -> None:
        """Which query view is compared with which key view from now on."""
        self.pairs = tuple(pairs)
        self.query_views = tuple(sorted({pair.query for pair in pairs}))
        self.key_views = tuple(sorted({pair.key for pair in pairs}))

    def targets(self, parts: Sequence[Sequence[Tensor]], moment: TrainingProgress) -> dict[int, Tensor]:
        """What the queries are compared with, without gradient: view -> (B, D). parts: micro-batches of views."""
        return {}

    def compute_loss(
        self, outputs: Mapping[int, Tensor], targets: Mapping[int, Tensor], moment: TrainingProgress
    ) -> StepOutput:
        """The loss of the encoder's outputs, view -> (B, ·), and what the bank learns from the same forward pass."""
        raise NotImplementedError

    def update(self, step: StepOutput, moment: TrainingProgress, bank_lr: float) -> None:
        """After the optimizer's step."""


def allow_graphs(count: int) -> None:
    """Let torch.compile make so many more graphs of one function before it gives up and runs it uncompiled: all
    networks of a process share the ResNet's code, and with it the limit."""
    torch._dynamo.config.cache_size_limit += count  # the name that every torch knows


class MomentumMethod(Method):
    """A method whose targets are keys: the rows of an encoder that follows the trained one by moving average."""

    def __init__(self, recipe: PretrainConfig, encoder: Encoder, pairs: Sequence[Pair]):
        super().__init__(recipe, encoder, pairs)
        self.options, self.seed = recipe.encoder, recipe.seed
        self.key_encoder = make_key_encoder(self.encoder, recipe.encoder)
        self.followed = paired_parameters(self.key_encoder, self.encoder)

    def targets(self, parts: Sequence[Sequence[Tensor]], moment: TrainingProgress) -> dict[int, Tensor]:
        """The keys; the key encoder takes its step before them, as in the released code."""
        momentum = self.options.key_momentum
        if self.options.key_momentum_to_one:
            momentum = cosine(moment.step, 1, moment.steps, momentum, 1.0, by="step")
        momentum_update(*self.followed, momentum)
        return {view: self.keys([part[view] for part in parts], view, moment.step) for view in self.key_views}

    def sync_key_encoder(self) -> None:
        """Copy the trained encoder's parameters into the key encoder (after filling the bank)."""
        momentum_update(*self.followed, 0.0)

    @torch.no_grad()
    def keys(self, parts: Sequence[Tensor], view: int, step: int) -> Tensor:
        """Micro-batches (b, 3, S, S) of one view -> (B, D). `shuffle`: each from images of all ranks and parts."""
        if (
            self.options.key_batch_norm != "shuffle"
            or distributed.world_size() * len(parts) * self.options.norm_splits == 1
        ):
            return torch.cat([self.key_encoder([part])[0] for part in parts])
        images = torch.cat(list(parts))
        order = philox.permutation(self.seed, 64 * step + view, distributed.world_size() * len(images), philox.SHUFFLE)
        order = upload(torch.from_numpy(order), images.device)
        mixed = distributed.all_gather(images)[distributed.local_shard(order)]
        mixed = mixed.contiguous(memory_format=self.key_encoder.memory_format)
        rows = torch.cat([self.key_encoder([part])[0] for part in mixed.chunk(len(parts))])
        return distributed.local_shard(distributed.all_gather(rows)[order.argsort()])


class MemoryBankMethod(MomentumMethod):
    """A keyed method that contrasts its queries with a bank, whose rows learn from the same forward pass."""

    def __init__(self, recipe: PretrainConfig, encoder: Encoder, pairs: Sequence[Pair]):
        super().__init__(recipe, encoder, pairs)
        self.bank = MemoryBank(recipe.bank, recipe.encoder.dim)
        self.contrast = recipe.contrast

    def contrastive_loss(
        self, queries: Mapping[int, Tensor], keys: Mapping[int, Tensor], moment: TrainingProgress
    ) -> LossOutput:
        """The contrast of the queries, view -> (B, D), with the keys and the bank."""
        raise NotImplementedError

    def compute_loss(
        self, outputs: Mapping[int, Tensor], targets: Mapping[int, Tensor], moment: TrainingProgress
    ) -> StepOutput:
        result, pair = self.contrastive_loss(outputs, targets, moment), self.pairs[0]
        scalars = {"loss": result.loss.detach(), "accuracy": 100 * result.accuracy}
        return StepOutput(result.loss, scalars, outputs[pair.query].detach(), targets[pair.key], result.bank_gradient)

    def update(self, step: StepOutput, moment: TrainingProgress, bank_lr: float) -> None:
        self.bank.sgd_ascent_step(step.bank_gradient, bank_lr)
