"""The networks of the classifier protocols: a ResNet and one classifier per feature, their loss and their optimizer."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adco.models.resnet import stage_features
from adco.utils.lars import LARS
from adco.weights.backbone import Backbone
from transfer.classifier.protocols import ClassifierProtocol
from transfer.features.extract import pooled_map

LARC_TRUST = 0.001
MOMENTUM = 0.9


class Head(nn.Sequential):
    """BatchNorm (or none), flatten, and a linear classifier with weights from N(0, 0.01) and bias 0.

    Args:
        channels: channels C of the pooled map (B, C, h, w).
        width: C * h * w, the classifier's inputs.
        classes: the classifier's outputs.
        norm: ``none``, ``plain`` (BatchNorm without scale and shift) or ``affine``.
    """

    def __init__(self, channels: int, width: int, classes: int, norm: str):
        norms = [] if norm == "none" else [nn.BatchNorm2d(channels, affine=norm == "affine")]
        linear = nn.Linear(width, classes)
        nn.init.normal_(linear.weight, std=0.01)
        nn.init.zeros_(linear.bias)
        super().__init__(*norms, nn.Flatten(), linear)


class Network(nn.Module):
    """A torchvision ResNet and one head for each feature of a protocol.

    Args:
        backbone: the pretrained weights.
        protocol: its `heads`, `norm` and `backbone` are used.
        classes: outputs of each head.
        crop_px: side of the images, in pixels; it determines the size of the pooled maps.
        precision: the dtype in which autocast runs the ResNet and its pooling, None for float32. The heads are float32
            in any case.
    """

    def __init__(
        self,
        backbone: Backbone,
        protocol: ClassifierProtocol,
        classes: int,
        crop_px: int,
        precision: torch.dtype | None = None,
    ):
        super().__init__()
        self.backbone, self.protocol, self.precision = backbone.module(), protocol, precision
        with torch.inference_mode():
            maps = self.maps(torch.zeros(1, 3, crop_px, crop_px))
        heads = {kind: Head(m.shape[1], m[0].numel(), classes, protocol.norm) for kind, m in maps.items()}
        self.heads = nn.ModuleDict(heads)
        self.backbone.requires_grad_(protocol.backbone == "tuned")

    def maps(self, images: Tensor) -> dict[str, Tensor]:
        """Compute the pooled map that each head classifies.

        Args:
            images: (B, 3, S, S), normalised.

        Returns:
            The map (B, C, h, w), float32, by the name of the feature. Gradient flows to a tuned backbone.
        """
        with torch.autocast(images.device.type, self.precision, enabled=self.precision is not None):
            stages = stage_features(self.backbone, images)
            maps = {kind: pooled_map(stages, kind) for kind in self.protocol.heads}
        return {kind: values.float() for kind, values in maps.items()}

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Compute the logits (B, classes) of each head for images (B, 3, S, S)."""
        return self.classify(self.maps(images))

    def classify(self, maps: dict[str, Tensor]) -> dict[str, Tensor]:
        """Compute the logits (B, classes) of each head from the pooled maps (B, C, h, w)."""
        return {kind: head(maps[kind]) for kind, head in self.heads.items()}

    def training_mode(self) -> None:
        """Put the heads into training mode, and the backbone (its BatchNorm) unless the protocol freezes it."""
        self.train()
        self.backbone.train(self.protocol.backbone != "frozen")


def make_optimizer(network: Network) -> torch.optim.Optimizer:
    """Make the protocol's SGD or LARC, with momentum 0.9; weights and biases of norms are not decayed.

    Each parameter group keeps its full learning rate under ``base_lr``.
    """
    protocol = network.protocol
    norms = [p for m in network.heads.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters()]
    undecayed = {id(p) for p in norms}
    decayed = [p for p in network.heads.parameters() if id(p) not in undecayed]
    groups: list[dict] = [{"params": decayed, "base_lr": protocol.lr}]
    if norms:
        groups.append({"params": norms, "base_lr": protocol.lr, "weight_decay": 0.0})
    if protocol.backbone == "tuned":
        groups.append({"params": list(network.backbone.parameters()), "base_lr": protocol.lr_backbone})
    if protocol.optimizer == "larc":
        return LARS(groups, protocol.lr, MOMENTUM, protocol.weight_decay, LARC_TRUST)
    decay, nesterov = protocol.weight_decay, protocol.nesterov
    return torch.optim.SGD(groups, protocol.lr, MOMENTUM, weight_decay=decay, nesterov=nesterov)


def classification_loss(logits: dict[str, Tensor], labels: Tensor, loss: str) -> Tensor:
    """Sum the heads' losses; each head is trained by its own term alone.

    Args:
        logits: (B, classes) of each head.
        labels: (B,) class numbers for `softmax`; (B, classes) of 1 and 0 for `bce`.
        loss: `softmax`: mean cross-entropy; `bce`: binary cross-entropy, summed over images and classes.

    Returns:
        A scalar. Gradient flows to the logits.
    """
    if loss == "bce":
        first, *others = (
            F.binary_cross_entropy_with_logits(x, labels.float(), reduction="sum") for x in logits.values()
        )
    else:
        first, *others = (F.cross_entropy(x, labels) for x in logits.values())
    return sum(others, first)
