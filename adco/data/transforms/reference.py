"""The views as torchvision's transforms make them of Pillow images, with parameters.sample_params's random numbers.

It is the released code's pipeline, operation by operation: slow, and what the fast backends are compared with.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageFilter
from torchvision.transforms import functional as F

from adco.data.transforms import parameters
from adco.data.transforms.functional import NEUTRAL

_COLOR = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)


def reference_levels(
    image: Image.Image, px: int, scale: Sequence[float], draws: parameters.ViewParams, row: int
) -> np.ndarray:
    """One view of an image, by Pillow and numpy alone: torch's operations would start threads of their own in each
    thread that makes views.

    Args:
        image: an RGB image.
        px: side of the view in pixels.
        scale: (least, largest) share of the image's area that a crop takes.
        draws: the random numbers of B views.
        row: which of the B is applied.

    Returns:
        (3, px, px) uint8 levels, not normalised.
    """
    choices = draws.choices
    left, top, width, height = parameters.crop_box(*image.size, scale, draws.crops[row])
    view: Any = image  # torchvision's functions take Pillow images, but their annotations name tensors alone
    view = F.resized_crop(view, top, left, height, width, [px, px], antialias=True)
    factors = choices.factors[row].tolist()
    for number in choices.order[row].tolist():
        if factors[number] != NEUTRAL[number]:
            view = _COLOR[number](view, factors[number])
    if choices.gray[row]:
        view = F.to_grayscale(view, num_output_channels=3)
    if choices.sigma_px[row] > 0:
        view = view.filter(ImageFilter.GaussianBlur(choices.sigma_px[row].item()))
    if choices.solarize[row]:
        view = F.solarize(view, 128)
    if choices.flip[row]:
        view = F.hflip(view)
    return np.asarray(view).transpose(2, 0, 1)
