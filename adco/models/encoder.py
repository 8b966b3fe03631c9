"""Query and key encoders: a torchvision ResNet with an MLP head, and the momentum update between them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adco.config.schema import EncoderConfig
from adco.models.batch_norm import replace_norms
from adco.models.resnet import build_resnet


class Encoder(nn.Module):
    """Views -> one row an image: ResNet, average pool, MLP head, L2 norm, then what the method trains behind it.

    Args:
        options: Architecture, stem and head.
        normalize: Whether the head's output is scaled to unit length.
        tail: A module that a method trains behind the embedding: a predictor or prototypes. The key encoder has none.
            The attribute's name is part of the state dict.

    Attributes:
        precision: Dtype in which autocast computes ResNet and head; None: no autocast. The output is float32 anyway.
        memory_format: Memory format of the views.
    """

    precision: torch.dtype | None
    memory_format: torch.memory_format

    def __init__(self, options: EncoderConfig, normalize: bool = True, tail: nn.Module | None = None):
        super().__init__()
        self.normalize, self.join_views, self.precision = normalize, options.join_views, None
        self.memory_format = torch.channels_last
        self.backbone = build_resnet(options.arch, options.stem)
        self.head = mlp_head(512 if options.arch in ("resnet18", "resnet34") else 2048, options)
        self.tail = tail

    def forward(self, views: Sequence[Tensor]) -> list[Tensor]:
        """Embed each view.

        Args:
            views: (B, 3, S, S) normalised images, S of each view its own.

        Returns:
            For each view (B, dim), or what the tail makes of it.
        """
        if not self.join_views:
            return [self._embed(view) for view in views]
        outputs = []
        for _, group in groupby(views, key=lambda view: view.shape[-1]):
            same = list(group)
            joined = torch.stack(same, dim=1).flatten(0, 1)  # an image's views side by side, so that BatchNorm's
            joined = joined.contiguous(memory_format=self.memory_format)  # splits hold all views of some images
            outputs += self._embed(joined).unflatten(0, (-1, len(same))).unbind(dim=1)
        return outputs

    def _embed(self, images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, self.precision, enabled=self.precision is not None):
            z = self.head(self.backbone(images))
        z = z.float() if self.precision is not None else z
        z = F.normalize(z, dim=1) if self.normalize else z
        return self.tail(z) if self.tail is not None else z


def mlp_head(width: int, options: EncoderConfig) -> nn.Sequential:
    """The projection head (B, width) -> (B, dim): Linear [BatchNorm] ReLU ... Linear [BatchNorm without affine]."""
    hidden, layers = options.head_width or width, []
    for _ in range(options.head_layers - 1):
        norm = [nn.BatchNorm1d(hidden)] if options.head_norm else []
        layers += [nn.Linear(width, hidden, bias=not options.head_norm), *norm, nn.ReLU(inplace=True)]
        width = hidden
    norm = [nn.BatchNorm1d(options.dim, affine=False)] if options.head_out_norm else []
    return nn.Sequential(*layers, nn.Linear(width, options.dim, bias=options.head_out_bias and not norm), *norm)


def predictor(dim: int, hidden: int) -> nn.Sequential:
    """BYOL's and SimSiam's predictor (B, dim) -> (B, dim): Linear, BatchNorm, ReLU, Linear."""
    return nn.Sequential(
        nn.Linear(dim, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True), nn.Linear(hidden, dim)
    )


def make_key_encoder(encoder: Encoder, options: EncoderConfig) -> Encoder:
    """A copy without the tail, whose parameters take no gradient and whose BatchNorm is `options.key_batch_norm`."""
    key = copy.deepcopy(encoder).requires_grad_(False)
    key.tail, key.join_views = None, False
    return replace_norms(key, options.key_batch_norm == "sync", options.norm_splits)


def paired_parameters(key: nn.Module, query: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """The key encoder's parameters and, in the same order, those of the query encoder that they follow."""
    source = dict(query.named_parameters())
    names, keys = zip(*key.named_parameters(), strict=True)
    return list(keys), [source[name] for name in names]


@torch.no_grad()
def momentum_update(keys: list[Tensor], queries: list[Tensor], momentum: float) -> None:
    """key <- momentum * key + (1 - momentum) * query, in place, in one kernel (MoCo, eq. 2).

    Only parameters follow; BatchNorm statistics are each encoder's own.

    Args:
        keys: Parameters of the key encoder.
        queries: Those of the query encoder, as `paired_parameters` gives them.
        momentum: In [0, 1]; 0 copies.
    """
    torch._foreach_lerp_(keys, queries, 1 - momentum)
