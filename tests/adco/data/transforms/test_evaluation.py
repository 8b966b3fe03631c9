"""The crops on which networks are evaluated against torchvision's functions, pixel for pixel."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional as F

from adco.data.transforms.evaluation import FITS, EvalTransform

THEIRS = {
    "center": lambda image, px, resize_px: F.center_crop(F.resize(image, resize_px), [px, px]),
    "squash": lambda image, px, resize_px: F.resize(F.resize(image, resize_px), [px, px]),
    "square": lambda image, px, resize_px: F.center_crop(F.resize(image, [resize_px, resize_px]), [px, px]),
    "five": lambda image, px, resize_px: F.five_crop(F.resize(image, resize_px), [px, px]),
}


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize(("px", "resize_px"), [(224, 256), (16, 18), (40, 40)])
def test_crops_are_torchvisions_to_the_bit(fit, px, resize_px):
    rng = np.random.default_rng(0)
    for width, height in ((300, 200), (20, 61), (256, 256), (1, 1)):
        image: Any = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        theirs = THEIRS[fit](image, px, resize_px)
        theirs = torch.stack([F.pil_to_tensor(crop) for crop in theirs]) if fit == "five" else F.pil_to_tensor(theirs)
        transform = EvalTransform(fit, px, resize_px)
        ours = transform(image)
        assert ours.dtype == torch.uint8 and ours.shape == transform.shape
        assert torch.equal(ours, theirs)


def test_an_unknown_fit_is_refused():
    with pytest.raises(ValueError, match="'stretch': expected one of center, squash"):
        EvalTransform("stretch", 224, 256)
