"""How an image becomes the input of a network that is evaluated: resize and crop, nothing random."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms

FITS = ("center", "squash", "square", "five")


@dataclass(frozen=True)
class EvalTransform:
    """An RGB image as a square of `crop_px`, by torchvision's transforms for Pillow images; bilinear with antialiasing.

    Attributes:
        fit: one of FITS.
            `center`: shorter side to resize_px, then the central crop_px square.
            `squash`: VISSL's and OpenSelfSup's pair `Resize(256), Resize([224, 224])`. Our reading of their configs:
            the shorter side goes to resize_px with the aspect kept, then the WHOLE image is squashed to
            crop_px x crop_px. So nothing is cut off, the first step only adds a second resampling, and objects lose
            their aspect ratio.
            `square`: the whole image to resize_px x resize_px, then the central crop (AdCo's Places205).
            `five`: shorter side to resize_px, then the four corners and the centre.
        crop_px: side of the result in pixels.
        resize_px: side to which the image is resized first, at least crop_px.
    """

    fit: str
    crop_px: int
    resize_px: int

    def __post_init__(self):
        if self.fit not in FITS:
            raise ValueError(f"fit {self.fit!r}: expected one of {', '.join(FITS)}")

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the result: (3, crop_px, crop_px), or (5, 3, crop_px, crop_px) for `five`."""
        return (*((5,) if self.fit == "five" else ()), 3, self.crop_px, self.crop_px)

    def __call__(self, image: Image.Image) -> Tensor:
        """Resize and crop one image.

        Args:
            image: an RGB image of any size.

        Returns:
            The pixels, uint8 of shape `shape`; `functional.from_uint8` makes the network's input of them.
        """
        return self._steps(image)

    @cached_property
    def _steps(self) -> Callable[[Image.Image], Tensor]:
        whole, crop = [self.resize_px, self.resize_px], [self.crop_px, self.crop_px]
        shorter_side, to_tensor = transforms.Resize(self.resize_px), transforms.PILToTensor()
        steps = {
            "center": [shorter_side, transforms.CenterCrop(crop), to_tensor],
            "squash": [shorter_side, transforms.Resize(crop), to_tensor],
            "square": [transforms.Resize(whole), transforms.CenterCrop(crop), to_tensor],
            "five": [shorter_side, transforms.FiveCrop(crop), lambda crops: torch.stack(list(map(to_tensor, crops)))],
        }
        return transforms.Compose(steps[self.fit])
