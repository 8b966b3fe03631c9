"""The random parameters of MoCo's and BYOL's augmentation, sampled as numbers before any pixel is read.

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

from adco.config.schema import ViewConfig
from adco.utils import philox

TRIES = 10  # torchvision's attempts at a crop before it falls back to the centre
ASPECT = (3 / 4, 4 / 3)
ORDERS = np.array(list(permutations(range(4))))  # the 24 orders of brightness, contrast, saturation, hue
_DRAWS = 2 * TRIES + 2 + 1 + 1 + 4 + 1 + 1 + 1 + 1 + 1


@dataclass(frozen=True)
class AugmentParams:
    """What is done with the pixels of B views after the crop, one row an image; tensors on the CPU.

    Attributes:
        flip: (B,) bool, whether left and right are exchanged.
        factors: (B, 4) float32 of brightness, contrast and saturation (1: unchanged) and hue in turns (0: unchanged).
        order: (B, 4) int64, the numbers of these four in the order of their application.
        gray: (B,) bool, whether the view becomes greyscale.
        sigma_px: (B,) float32, standard deviation of the blur in pixels, 0 for none.
        solarize: (B,) bool, whether levels from 128 on are inverted.
    """

    flip: Tensor
    factors: Tensor
    order: Tensor
    gray: Tensor
    sigma_px: Tensor
    solarize: Tensor


@dataclass(frozen=True)
class ViewParams:
    """The random numbers of B views.

    Attributes:
        crops: (B, 2 * TRIES + 2) float64, uniform in [0, 1): a row an image, for `crop_box`.
        choices: the parameters of what follows the crop.
    """

    crops: np.ndarray
    choices: AugmentParams


def sample_params(view: ViewConfig, seed: int, epoch: int, samples: np.ndarray, number: int) -> ViewParams:
    """The random numbers of one view of the given samples, a function of (seed, epoch, sample, view).

    Args:
        view: the view's configuration.
        seed: the training's seed.
        epoch: number of the epoch.
        samples: (B,) numbers of the samples.
        number: the view's number, from 0.

    Returns:
        The numbers of B views.
    """
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
    """The crop of torchvision's RandomResizedCrop, aspect ratio between 3 / 4 and 4 / 3.

    Args:
        width, height: the image's, in pixels.
        scale: (least, largest) share of the image's area.
        u: (2 * TRIES + 2,), uniform in [0, 1): the areas of the tries, their log aspect ratios, then the place.

    Returns:
        (left, top, width, height) in pixels.
    """
    low, high = math.log(ASPECT[0]), math.log(ASPECT[1])
    for area, ratio in zip(u[:TRIES], u[TRIES : 2 * TRIES], strict=True):
        target = width * height * (scale[0] + (scale[1] - scale[0]) * area)
        aspect = math.exp(low + (high - low) * ratio)
        w, h = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(u[-1] * (width - w + 1)), int(u[-2] * (height - h + 1)), w, h
    # no try fits: the central crop with the nearest aspect ratio
    w = min(width, round(height * ASPECT[1]))
    h = min(height, round(width / ASPECT[0]))
    return (width - w) // 2, (height - h) // 2, w, h


def resized_crop(image: Image.Image, px: int, box: tuple[int, int, int, int]) -> np.ndarray:
    """Crop an image and resize it, bilinear and antialiased as torchvision.

    Args:
        image: an RGB image.
        px: side of the result in pixels.
        box: (left, top, width, height) in pixels.

    Returns:
        (3, px, px) uint8 levels, not contiguous in memory.
    """
    left, top, width, height = box
    crop = image.crop((left, top, left + width, top + height)).resize((px, px), Image.Resampling.BILINEAR)
    return np.asarray(crop).transpose(2, 0, 1)
