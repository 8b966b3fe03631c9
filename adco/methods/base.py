"""The interface of every method, and what those with a key encoder share.

A step calls `targets`, the encoder, `compute_loss`, and after the optimizer's step `update`. Shapes: B images a rank,
D dimensions of the embedding. Views are numbered as in the recipe.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from adco.config.schema import ComputeConfig, PretrainConfig
from adco.losses.bank_gradient import BankGradient
from adco.losses.bank_softmax import LossOutput
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
    """Where the run is.

    Attributes:
        step: Number of steps that are done.
        steps: Number of steps of the whole run.
        steps_per_epoch: Number of steps of an epoch.
    """

    step: int
    steps: int
    steps_per_epoch: int

    @property
    def epoch(self) -> float:
        """Number of epochs that are done."""
        return self.step / self.steps_per_epoch


@dataclass(frozen=True)
class StepOutput:
    """What `Method.compute_loss` returns.

    Attributes:
        loss: This rank's scalar, with gradient.
        scalars: Name -> scalar without gradient, to be logged.
        queries: (B, D) unit embeddings of one view, without gradient, for the metrics of the embedding.
        keys: (B, D) unit embeddings of another view, likewise; a queue takes them.
        bank_gradient: Gradient that the bank's rows ascend; None where they do not learn.
    """

    loss: Tensor
    scalars: dict[str, Tensor]
    queries: Tensor
    keys: Tensor
    bank_gradient: BankGradient | None = None


class Method(nn.Module):
    """A method whose gradients reach all views; subclasses write `compute_loss`.

    Args:
        recipe: Configuration of the run.
        encoder: The network that the optimizer trains: list of views (B, 3, S, S) -> list of (B, width) outputs.
        pairs: Which query view is compared with which key view.

    Attributes:
        query_views: Numbers of the views that the encoder is given.
        key_views: Numbers of the views that are positives.
        bank, key_encoder: None, or those of the subclasses that have them.
    """

    encoder: Encoder
    bank: MemoryBank | None
    key_encoder: Encoder | None

    def __init__(self, recipe: PretrainConfig, encoder: Encoder, pairs: Sequence[Pair]):
        super().__init__()
        options = recipe.encoder
        self.encoder = replace_norms(encoder, options.batch_norm == "sync", options.norm_splits)
        self.bank = self.key_encoder = None
        self.sizes = {view.px for view in recipe.views}
        self.set_pairs(pairs)

    def to_device(self, compute: ComputeConfig, device: torch.device) -> Method:
        """Move to the device, and set precision, memory format and compilation of the encoders; returns self.

        Raises:
            UserError: `compute` asks for what only an NVIDIA GPU has.
        """
        for asked, key in ((compute.cuda_graphs, "cuda_graphs=true"), (compute.precision == "tf32", "precision=tf32")):
            if asked and device.type != "cuda":
                raise UserError(f"recipe: compute.{key} needs an NVIDIA GPU, and this is {device.type}; leave it out")
        set_arithmetic(device, compute.precision)
        memory_format = torch.channels_last if compute.channels_last else torch.contiguous_format
        self.to(device, memory_format=memory_format)  # pyright: ignore[reportCallIssue]  (torch has no stub for it)
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
        """Set which query view is compared with which key view from now on."""
        self.pairs = tuple(pairs)
        self.query_views = tuple(sorted({pair.query for pair in pairs}))
        self.key_views = tuple(sorted({pair.key for pair in pairs}))

    def targets(self, parts: Sequence[Sequence[Tensor]], progress: TrainingProgress) -> dict[int, Tensor]:
        """What the queries are compared with.

        Args:
            parts: Micro-batches, each a list of all views (b, 3, S, S).
            progress: Where the run is.

        Returns:
            View -> (B, D) without gradient; empty for methods without a key encoder.
        """
        return {}

    def compute_loss(
        self, outputs: Mapping[int, Tensor], targets: Mapping[int, Tensor], progress: TrainingProgress
    ) -> StepOutput:
        """The loss of one step on this rank.

        Args:
            outputs: View -> (B, width) outputs of the encoder, with gradient, for `query_views`.
            targets: What `targets` returned.
            progress: Where the run is.
        """
        raise NotImplementedError

    def update(self, step: StepOutput, progress: TrainingProgress, bank_lr: float) -> None:
        """Called after the optimizer's step: the bank or queue takes its own."""


class MomentumMethod(Method):
    """A method whose targets are keys: embeddings of an encoder that follows the trained one by a moving average."""

    key_encoder: Encoder

    def __init__(self, recipe: PretrainConfig, encoder: Encoder, pairs: Sequence[Pair]):
        super().__init__(recipe, encoder, pairs)
        self.options, self.seed = recipe.encoder, recipe.seed
        self.key_encoder = make_key_encoder(self.encoder, recipe.encoder)
        self.followed = paired_parameters(self.key_encoder, self.encoder)

    def targets(self, parts: Sequence[Sequence[Tensor]], progress: TrainingProgress) -> dict[int, Tensor]:
        """The keys. The key encoder takes its step before they are computed, as in the released code."""
        momentum = self.options.key_momentum
        if self.options.key_momentum_to_one:
            momentum = cosine(progress.step, 1, progress.steps, momentum, 1.0, by="step")
        momentum_update(*self.followed, momentum)
        return {view: self.keys([part[view] for part in parts], view, progress.step) for view in self.key_views}

    def sync_key_encoder(self) -> None:
        """Copy the trained encoder's parameters into the key encoder, as is done after the bank was filled."""
        momentum_update(*self.followed, 0.0)

    @torch.no_grad()
    def keys(self, parts: Sequence[Tensor], view: int, step: int) -> Tensor:
        """Embeddings of one view by the key encoder.

        With `encoder.key_batch_norm: shuffle` the images of all ranks and micro-batches are permuted before, so that
        BatchNorm sees other groups of images than the query encoder's does (MoCo, section 3.3).

        Args:
            parts: Micro-batches (b, 3, S, S) of the view.
            view: Its number; with `step` and the seed it determines the permutation.
            step: Number of the step.

        Returns:
            (B, D) unit embeddings of this rank's images, in their order, without gradient.
        """
        ranks = distributed.world_size()
        if self.options.key_batch_norm != "shuffle" or ranks * len(parts) * self.options.norm_splits == 1:
            return torch.cat([self.key_encoder([part])[0] for part in parts])
        images = torch.cat(list(parts))
        order = philox.permutation(self.seed, 64 * step + view, ranks * len(images), philox.SHUFFLE)
        order = upload(torch.from_numpy(order), images.device)
        shuffled = distributed.all_gather(images)[distributed.local_shard(order)]
        shuffled = shuffled.contiguous(memory_format=self.key_encoder.memory_format)
        embeddings = torch.cat([self.key_encoder([part])[0] for part in shuffled.chunk(len(parts))])
        return distributed.local_shard(distributed.all_gather(embeddings)[order.argsort()])


class MemoryBankMethod(MomentumMethod):
    """A momentum method that compares its queries with a bank; subclasses write `contrastive_loss`."""

    bank: MemoryBank

    def __init__(self, recipe: PretrainConfig, encoder: Encoder, pairs: Sequence[Pair]):
        super().__init__(recipe, encoder, pairs)
        self.bank = MemoryBank(recipe.bank, recipe.encoder.dim)
        self.contrast = recipe.contrast

    def contrastive_loss(
        self, queries: Mapping[int, Tensor], keys: Mapping[int, Tensor], progress: TrainingProgress
    ) -> LossOutput:
        """The loss of the queries against the keys and the bank, and the bank's gradient from the same forward pass.

        Args:
            queries: View -> (B, D) unit queries, with gradient.
            keys: View -> (B, D) unit keys, without.
            progress: Where the run is.
        """
        raise NotImplementedError

    def compute_loss(
        self, outputs: Mapping[int, Tensor], targets: Mapping[int, Tensor], progress: TrainingProgress
    ) -> StepOutput:
        """The contrastive loss, with the accuracy to be logged and the bank's gradient."""
        result, pair = self.contrastive_loss(outputs, targets, progress), self.pairs[0]
        scalars = {"loss": result.loss.detach(), "accuracy": 100 * result.accuracy}
        return StepOutput(
            result.loss, scalars, outputs[pair.query].detach(), targets[pair.key], bank_gradient=result.bank_gradient
        )

    def update(self, step: StepOutput, progress: TrainingProgress, bank_lr: float) -> None:
        """The bank takes an SGD step up its gradient."""
        assert step.bank_gradient is not None
        self.bank.sgd_ascent_step(step.bank_gradient, bank_lr)


def allow_graphs(count: int) -> None:
    """Let torch.compile make so many more graphs of one function before it gives up and runs it uncompiled: all
    networks of a process share the ResNet's code, and with it the limit."""
    torch._dynamo.config.cache_size_limit += count  # the name that every torch knows
