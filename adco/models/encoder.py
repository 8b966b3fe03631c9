"""Query and key encoders: a torchvision ResNet with an MLP head, and the momentum update between them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adco.config.schema import EncoderConfig as Options
from adco.models.batch_norm import replace_norms
from adco.models.resnet import build_resnet


class Encoder(nn.Module):
    """Views (B, 3, S, S) -> one row an image: ResNet, average pool, head, L2 norm if `unit`, then the method's `tail`.

    tail: what a method trains behind the embedding (a predictor, prototypes); the key encoder has none.
    precision: None, or the dtype that autocast computes the ResNet and the head in; rows are float32 in any case.
    memory_format: of its inputs.
    """

    def __init__(self, options: Options, unit: bool = True, tail: nn.Module | None = None):
        super().__init__()
        self.unit, self.join_views, self.precision = unit, options.join_views, None
        self.memory_format = torch.channels_last
        self.backbone = build_resnet(options.arch, options.stem)
        self.head = mlp_head(512 if options.arch in ("resnet18", "resnet34") else 2048, options)
        self.tail = tail

    def forward(self, views: Sequence[Tensor]) -> list[Tensor]:
        """One (B, dim) tensor a view (or what the tail makes of it)."""
        if not self.join_views:
            return [self._rows(view) for view in views]
        outputs = []
        for _, group in groupby(views, key=lambda view: view.shape[-1]):
            same = list(group)
            joined = torch.stack(same, dim=1).flatten(0, 1)  # an image's views side by side: a part has all of some
            rows = self._rows(joined.contiguous(memory_format=self.memory_format))
            outputs += rows.unflatten(0, (-1, len(same))).unbind(dim=1)
        return outputs

    def _rows(self, images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, self.precision, enabled=self.precision is not None):
            rows = self.head(self.backbone(images))
        rows = rows.float() if self.precision is not None else rows
        rows = F.normalize(rows, dim=1) if self.unit else rows
        return self.tail(rows) if self.tail is not None else rows


def mlp_head(width: int, options: Options) -> nn.Sequential:
    """Linear(width, hidden) [BatchNorm] ReLU ... Linear(hidden, dim) [BatchNorm without affine]."""
    hidden, layers = options.head_width or width, []
    for _ in range(options.head_layers - 1):
        norm = [nn.BatchNorm1d(hidden)] if options.head_norm else []
        layers += [nn.Linear(width, hidden, bias=not options.head_norm), *norm, nn.ReLU(inplace=True)]
        width = hidden
    norm = [nn.BatchNorm1d(options.dim, affine=False)] if options.head_out_norm else []
    return nn.Sequential(*layers, nn.Linear(width, options.dim, bias=options.head_out_bias and not norm), *norm)


def predictor(dim: int, hidden: int) -> nn.Sequential:
    """BYOL's and SimSiam's predictor: Linear, BatchNorm, ReLU, Linear, (B, dim) -> (B, dim)."""
    return nn.Sequential(
        nn.Linear(dim, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True), nn.Linear(hidden, dim)
    )


def make_key_encoder(encoder: Encoder, options: Options) -> Encoder:
    """A copy without the tail, whose parameters take no gradient and whose BatchNorm follows `key_batch_norm`."""
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
    """key <- key + (1 - momentum) (query - key), in place, one kernel for all: parameters only, as BatchNorm statistics
    are each encoder's own. keys, queries: as `paired_parameters` gives them."""
    torch._foreach_lerp_(keys, queries, 1 - momentum)
