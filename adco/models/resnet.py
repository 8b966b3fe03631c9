"""torchvision's ResNets without their classifier, with either stem."""

from __future__ import annotations

import torchvision
from torch import Tensor, nn
from torchvision.models import ResNet

from adco.utils.errors import UserError

ARCHITECTURES = (
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "wide_resnet50_2",
    "wide_resnet101_2",
    "resnext50_32x4d",
    "resnext101_32x8d",
    "resnext101_64x4d",
)
STAGES = ("res2", "res3", "res4", "res5")


def build_resnet(arch: str, stem: str = "imagenet") -> ResNet:
    """A torchvision ResNet without its classifier, randomly initialised.

    Args:
        arch: One of ARCHITECTURES.
        stem: `imagenet` (7x7 stride 2, max pool) or `small` (3x3 stride 1, no pool, for images of about 32 to 64 px).

    Returns:
        A network (B, 3, H, W) -> (B, C) average-pooled features; C is 512 for resnet18 and resnet34, else 2048.

    Raises:
        UserError: The architecture or stem is not known.
    """
    if arch not in ARCHITECTURES:
        raise UserError(f"architecture {arch!r} is not supported; choose one of {', '.join(ARCHITECTURES)}")
    model = getattr(torchvision.models, arch)(weights=None)
    model.fc = nn.Identity()  # pyright: ignore[reportAttributeAccessIssue]
    if stem == "small":
        model.conv1 = nn.Conv2d(3, 64, kernel_size=3, padding=1, bias=False)
        nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
        model.maxpool = nn.Identity()  # pyright: ignore[reportAttributeAccessIssue]
    elif stem != "imagenet":
        raise UserError(f"stem {stem!r} is not known; choose imagenet or small")
    return model


def stage_features(model: ResNet, images: Tensor) -> dict[str, Tensor]:
    """The feature maps of a ResNet after layer1 to layer4, by detectron2's names.

    Args:
        model: A torchvision ResNet.
        images: (B, 3, H, W) normalised images.

    Returns:
        `res2` (B, C, H/4, W/4), `res3` (B, 2C, H/8, W/8), `res4` (B, 4C, H/16, W/16), `res5` (B, 8C, H/32, W/32).
    """
    x = model.maxpool(model.relu(model.bn1(model.conv1(images))))
    features = {}
    for stage, layer in zip(STAGES, (model.layer1, model.layer2, model.layer3, model.layer4), strict=True):
        features[stage] = x = layer(x)
    return features
