"""What a view is: the random choices of MoCo's and BYOL's augmentation, drawn as numbers before any pixel is touched.

Distributions are torchvision's (RandomResizedCrop, ColorJitter, RandomGrayscale, RandomHorizontalFlip,
RandomSolarize) and MoCo's GaussianBlur; each number is a function of (seed, epoch, sample, view).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from adco.utils import philox

TRIES = 10  # torchvision's attempts at a crop before it falls back to the centre
ASPECT = (3 / 4, 4 / 3)
ORDERS = np.array(list(permutations(range(4))))  # the 24 orders of brightness, contrast, saturation, hue
_DRAWS = 2 * TRIES + 2 + 1 + 1 + 4 + 1 + 1 + 1 + 1 + 1


@dataclass(frozen=True)
class AugmentParams:
    """What happens to the pixels of B views after the crop, one row an image.

    flip, gray, solarize: (B,) bool. factors: (B, 4) float32 brightness, contrast, saturation (1: as it is) and hue
    (0: as it is). order: (B, 4) int64, the order in which the four are applied. sigma_px: (B,) float32 blur width, 0
    for none.
    """

    flip: Tensor
    factors: Tensor
    order: Tensor
    gray: Tensor
    sigma_px: Tensor
    solarize: Tensor


@dataclass(frozen=True)
class ViewParams:
    """The uniform numbers of B views: `crops` feeds `crop_box` (one row an image), `choices` is for the pixel work."""

    crops: np.ndarray
    choices: AugmentParams


def sample_params(view, seed: int, epoch: int, samples: np.ndarray, number: int) -> ViewParams:
    """Draw everything random about view `number` (a config.View) of the given samples."""
    u = philox.uniforms(seed, epoch, samples, number, _DRAWS)
    crops, rest = np.split(u, [2 * TRIES + 2], axis=1)
    flip, jitter, *strengths, order, gray, blur, sigma, solarize = rest.T
    low = np.array([max(0.0, 1 - s) for s in view.jitter[:3]] + [-view.jitter[3]])
    high = np.array([1 + s for s in view.jitter[:3]] + [view.jitter[3]])
    factors = low + (high - low) * np.stack(strengths, axis=1)
    factors[jitter >= view.jitter_p] = (1, 1, 1, 0)
    narrow, wide = view.blur_sigma_px
    choices = AugmentParams(
        flip=torch.from_numpy(flip < view.flip_p),
        factors=torch.from_numpy(factors.astype(np.float32)),
        order=torch.from_numpy(ORDERS[(order * len(ORDERS)).astype(int)]),
        gray=torch.from_numpy(gray < view.gray_p),
        sigma_px=torch.from_numpy(np.where(blur < view.blur_p, narrow + (wide - narrow) * sigma, 0).astype(np.float32)),
        solarize=torch.from_numpy(solarize < view.solarize_p),
    )
    return ViewParams(crops, choices)


def crop_box(width: int, height: int, scale: Sequence[float], u: np.ndarray) -> tuple[int, int, int, int]:
    """torchvision's RandomResizedCrop for an image of width x height px: (left, top, width, height) of the crop.

    u: (2 * TRIES + 2,) uniforms: the areas of the tries, their log aspect ratios, then the place.
    """
    low, high = math.log(ASPECT[0]), math.log(ASPECT[1])
    for area, ratio in zip(u[:TRIES], u[TRIES : 2 * TRIES], strict=True):
        target = width * height * (scale[0] + (scale[1] - scale[0]) * area)
        aspect = math.exp(low + (high - low) * ratio)
        w, h = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(u[-1] * (width - w + 1)), int(u[-2] * (height - h + 1)), w, h
    w = min(width, round(height * ASPECT[1]))
    h = min(height, round(width / ASPECT[0]))
    return (width - w) // 2, (height - h) // 2, w, h


def resized_crop(image: Image.Image, px: int, box: tuple[int, int, int, int]) -> np.ndarray:
    """Crop `box` out of an RGB image and resize it, bilinear and antialiased as torchvision: (3, px, px) uint8."""
    left, top, width, height = box
    crop = image.crop((left, top, left + width, top + height)).resize((px, px), Image.Resampling.BILINEAR)
    return np.asarray(crop).transpose(2, 0, 1)
