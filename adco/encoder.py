"""Query and key encoders: a torchvision ResNet with MoCo's two-layer head, and the momentum update between them."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adco.backbone import build_resnet


class Encoder(nn.Module):
    """Images (B, 3, H, W) -> unit rows (B, dim): ResNet, average pool, Linear(C, C), ReLU, Linear(C, dim), L2 norm.

    head_norm: BatchNorm after the head's first layer, which then has no bias.
    """

    def __init__(self, arch: str, stem: str, dim: int, head_norm: bool = False):
        super().__init__()
        self.backbone = build_resnet(arch, stem)
        width = 512 if arch in ("resnet18", "resnet34") else 2048
        norm = [nn.BatchNorm1d(width)] if head_norm else []
        hidden = nn.Linear(width, width, bias=not head_norm)
        self.head = nn.Sequential(hidden, *norm, nn.ReLU(inplace=True), nn.Linear(width, dim))

    def forward(self, images: Tensor) -> Tensor:
        return F.normalize(self.head(self.backbone(images)), dim=1)


def key_encoder_of(encoder: nn.Module) -> nn.Module:
    """A copy whose parameters take no gradient."""
    return copy.deepcopy(encoder).requires_grad_(False)


@torch.no_grad()
def momentum_update(key: nn.Module, query: nn.Module, momentum: float) -> None:
    """key <- momentum * key + (1 - momentum) * query, parameters only: BatchNorm statistics are each encoder's own."""
    keys, queries = list(key.parameters()), list(query.parameters())
    torch._foreach_mul_(keys, momentum)
    torch._foreach_add_(keys, queries, alpha=1 - momentum)
