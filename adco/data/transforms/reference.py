"""The views as torchvision's transforms on Pillow images make them, with the choices that parameters.draw gave.

Slow, and what the fast backends are compared with: the released code's pipeline, operation by operation.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageFilter
from torchvision.transforms import functional as F

from adco.data.transforms import parameters
from adco.data.transforms.functional import NEUTRAL

_COLOR = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)


def reference_levels(
    image: Image.Image, px: int, scale: tuple[float, float], draws: parameters.ViewParams, row: int
) -> np.ndarray:
    """Row `row` of the draws applied to an RGB image: (3, px, px) uint8. By Pillow and numpy alone: of torch's
    operations each thread that makes views would start threads of its own."""
    choices = draws.choices
    left, top, width, height = parameters.crop_box(*image.size, scale, draws.crops[row])
    image = F.resized_crop(image, top, left, height, width, [px, px], antialias=True)
    factors = choices.factors[row].tolist()
    for number in choices.order[row].tolist():
        if factors[number] != NEUTRAL[number]:
            image = _COLOR[number](image, factors[number])
    if choices.gray[row]:
        image = F.to_grayscale(image, num_output_channels=3)
    if choices.sigma_px[row] > 0:
        image = image.filter(ImageFilter.GaussianBlur(choices.sigma_px[row].item()))
    if choices.solarize[row]:
        image = F.solarize(image, 128)
    if choices.flip[row]:
        image = F.hflip(image)
    return np.asarray(image).transpose(2, 0, 1)
