"""How an image becomes the network's input when a frozen backbone is judged."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import functional as pixels

from adco.utils.errors import UserError

CROP_PX, RESIZE_PX = 224, 256  # the protocols' sizes
FITS = ("center", "squash", "square", "five")


@dataclass(frozen=True)
class Transform:
    """How an image becomes a (3, crop_px, crop_px) input; bilinear with antialiasing throughout.

    fit `center`: shorter side to resize_px, then the central crop_px square.
    fit `squash`: VISSL's and OpenSelfSup's pair `Resize(256), Resize([224, 224])`. Our reading of their configs: the
    shorter side goes to resize_px with the aspect kept, then the WHOLE image is squashed to crop_px x crop_px. So
    nothing is cut off, the first step leaves no trace but a second resampling, and objects lose their aspect ratio.
    fit `square`: the whole image to resize_px x resize_px, then the central crop (AdCo's Places205).
    fit `five`: shorter side to resize_px, then the four corners and the centre: (5, 3, crop_px, crop_px).
    """

    fit: str = "center"
    crop_px: int = CROP_PX
    resize_px: int = RESIZE_PX

    def __post_init__(self):
        if self.fit not in FITS:
            raise ValueError(f"fit {self.fit!r}: expected one of {', '.join(FITS)}")
        if not 32 <= self.crop_px <= self.resize_px:
            raise UserError(
                f"image size {self.crop_px} px with resize {self.resize_px} px: expected 32 <= image size <= resize"
            )

    @property
    def name(self) -> str:
        """`center224`, `squash224`, `center128-resize146`: the resize is named when it is not 256 to 224."""
        standard = (self.crop_px, self.resize_px) == (CROP_PX, RESIZE_PX)
        return f"{self.fit}{self.crop_px}" + ("" if standard else f"-resize{self.resize_px}")

    @property
    def shape(self) -> tuple[int, ...]:
        """Of what it makes of an image."""
        return (*((5,) if self.fit == "five" else ()), 3, self.crop_px, self.crop_px)

    def __call__(self, image: Image.Image) -> Tensor:
        """RGB image -> (3, crop_px, crop_px) uint8, five of them for `five`; see `functional.from_uint8`."""
        bilinear = pixels.InterpolationMode.BILINEAR
        size = [self.resize_px, self.resize_px] if self.fit == "square" else self.resize_px
        image = pixels.resize(image, size, bilinear, antialias=True)
        if self.fit == "five":
            return torch.stack([pixels.pil_to_tensor(crop) for crop in pixels.five_crop(image, self.crop_px)])
        if self.fit == "squash":
            image = pixels.resize(image, [self.crop_px, self.crop_px], bilinear, antialias=True)
        else:
            image = pixels.center_crop(image, [self.crop_px, self.crop_px])
        return pixels.pil_to_tensor(image)
