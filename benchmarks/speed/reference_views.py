"""The transforms of the released AdCo, lightly and solo-learn, as `input.py` times them.

They are re-statements: the same libraries and calls, written here.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from PIL import Image, ImageFilter, ImageOps
from torchvision import transforms
from torchvision.transforms import v2

from adco.data.transforms.functional import MEAN, STD
from adco.utils.errors import UserError

# Side in pixels and range of scales of the released AdCo's five smaller crops.
SMALLER = ((224, 0.2, 1.0), (192, 0.172, 0.86), (160, 0.143, 0.715), (128, 0.114, 0.571), (96, 0.086, 0.429))


class Blur:
    """The GaussianBlur of MoCo and solo-learn."""

    def __call__(self, image: Image.Image) -> Image.Image:
        """Blur an image with a random sigma of 0.1 to 2 px."""
        return image.filter(ImageFilter.GaussianBlur(radius=random.uniform(0.1, 2.0)))


def released_view(px: int = 224, scale: Sequence[float] = (0.2, 1.0), blur: Callable | None = None) -> Callable:
    """One view of the released AdCo (main_worker.py and MultiCrop_Transform.py)."""
    return transforms.Compose(
        [
            transforms.RandomResizedCrop(px, scale=tuple(scale)),
            transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
            transforms.RandomGrayscale(p=0.2),
            transforms.RandomApply([blur or Blur()], p=0.5),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(mean=MEAN, std=STD),
        ]
    )


def lightly_view() -> Callable:
    """One view of lightly's MoCoV2Transform with MoCo v2's strengths (it takes torchvision's v2 transforms)."""
    return v2.Compose(
        [
            v2.RandomResizedCrop(size=224, scale=(0.2, 1.0)),
            v2.RandomHorizontalFlip(p=0.5),
            v2.RandomVerticalFlip(p=0.0),
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
            v2.RandomGrayscale(p=0.2),
            v2.RandomApply([Blur()], p=0.5),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(mean=MEAN, std=STD),
        ]
    )


def solo_learn_view() -> Callable:
    """One view of solo-learn's ImagenetTransform with MoCo v2's strengths."""
    return transforms.Compose(
        [
            transforms.RandomResizedCrop(224, scale=(0.2, 1.0), interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
            transforms.RandomGrayscale(p=0.2),
            transforms.RandomApply([Blur()], p=0.5),
            transforms.RandomApply([ImageOps.solarize], p=0.0),
            transforms.RandomApply([ImageOps.equalize], p=0.0),
            transforms.RandomHorizontalFlip(p=0.5),
            transforms.ToTensor(),
            transforms.Normalize(mean=MEAN, std=STD),
        ]
    )


class Views:
    """Turns an image into one tensor for each view."""

    def __init__(self, made: Sequence[Callable]):
        self.made = made

    def __call__(self, image: Image.Image) -> list[torch.Tensor]:
        """All views of an image."""
        return [view(image) for view in self.made]


def clone_views(root: Path) -> dict[str, Callable]:
    """The transforms of a clone of the released AdCo, by name. Raises UserError when it is not one."""
    sys.path.insert(0, str(root))
    try:
        from data_processing.loader import GaussianBlur, TwoCropsTransform
        from data_processing.MultiCrop_Transform import Multi_Transform
    except ImportError as error:
        raise UserError(f"--reference {root}: not a clone of the released AdCo ({error})") from error
    finally:
        sys.path.remove(str(root))
    px, low, high = zip(*SMALLER, strict=True)
    normalize = transforms.Normalize(mean=MEAN, std=STD)
    return {
        "two crops": TwoCropsTransform(released_view(blur=GaussianBlur([0.1, 2.0]))),
        "key + 5 crops": Multi_Transform(px, [1] * 5, low, high, normalize),
    }
