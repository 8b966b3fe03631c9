"""The batched pixel work of a view, on the device that trains: colour, greyscale, blur, flip, normalisation.

Every operation is torchvision's on float images in [0, 1], with one parameter a sample instead of one a call; each is
tested against Pillow and torchvision. Images are (B, 3, H, W) RGB without gradient, because they are made of uint8
pixels. The random choices stay on the CPU, where they were drawn, so that choosing rows never waits for a GPU.
"""

from __future__ import annotations

import math
from functools import reduce

import torch
from torch import Tensor
from torch.nn import functional as F

from adco.data.transforms.parameters import AugmentParams
from adco.utils.device import constant, upload

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet, RGB
NEUTRAL = (1, 1, 1, 0)  # factors of brightness, contrast and saturation, and the shift of hue, that change nothing
LUMA = (0.299, 0.587, 0.114)  # ITU-R 601-2, as Pillow converts to greyscale


def augment(pixels: Tensor, choices: AugmentParams) -> Tensor:
    """Everything of a view after its crop, as MoCo and BYOL: jitter, greyscale, blur, solarize, flip, normalisation.

    Args:
        pixels: crops, (B, 3, H, W) uint8.
        choices: the random parameters of the B views, on the CPU.

    Returns:
        (B, 3, H, W) float32 on the device of `pixels`, normalised with ImageNet's statistics.
    """

    def mask(rows: Tensor) -> Tensor:
        return upload(rows, pixels.device).view(-1, 1, 1, 1)

    images = pixels.float().div_(255)
    images = color_jitter(images, choices.factors, choices.order)
    images = torch.where(mask(choices.gray), luma(images), images)
    images = gaussian_blur(images, choices.sigma_px)
    if choices.solarize.any():
        images = torch.where(mask(choices.solarize), solarize(images), images)
    images = torch.where(mask(choices.flip), images.flip(-1), images)
    return normalize(images)


def from_uint8(pixels: Tensor) -> Tensor:
    """The network's input of images without augmentation.

    Args:
        pixels: (B, 3, H, W) uint8.

    Returns:
        (B, 3, H, W) float32, normalised with ImageNet's statistics.
    """
    return normalize(pixels.float().div_(255))


def normalize(images: Tensor) -> Tensor:
    """Images (B, 3, H, W) in [0, 1] minus ImageNet's mean, over its standard deviation."""
    mean, std = (constant(values, images.device, images.dtype).view(3, 1, 1) for values in (MEAN, STD))
    return (images - mean) / std


def color_jitter(images: Tensor, factors: Tensor, order: Tensor) -> Tensor:
    """torchvision's ColorJitter, each image with its own factors in its own order.

    Args:
        images: (B, 3, H, W) in [0, 1].
        factors: (B, 4) of brightness, contrast and saturation (1: unchanged) and hue in turns (0: unchanged), on the
            CPU.
        order: (B, 4) int64, the numbers 0 to 3 of the four operations in the order of their application, on the CPU.

    Returns:
        New images (B, 3, H, W) in [0, 1].
    """
    images = images.clone()
    operations = (brightness, contrast, saturation, hue)
    for place in range(4):
        for number, (operation, neutral) in enumerate(zip(operations, NEUTRAL, strict=True)):
            # the images whose operation at this place is this one, and changes them
            rows = ((order[:, place] == number) & (factors[:, number] != neutral)).nonzero().squeeze(1)
            if len(rows):
                factor = upload(factors[rows, number], images.device).view(-1, 1, 1, 1)
                rows = upload(rows, images.device)
                images[rows] = operation(images[rows], factor)
    return images


def brightness(images: Tensor, factor: Tensor) -> Tensor:
    """factor * image, clamped to [0, 1]. images: (B, 3, H, W); factor: (B, 1, 1, 1)."""
    return (images * factor).clamp_(0, 1)


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with the image's mean luma, clamped to [0, 1]. images: (B, 3, H, W); factor: (B, 1, 1, 1)."""
    return torch.lerp(luma(images).mean(dim=(1, 2, 3), keepdim=True), images, factor).clamp_(0, 1)


def saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with the image's luma, clamped to [0, 1]. images: (B, 3, H, W); factor: (B, 1, 1, 1)."""
    return torch.lerp(luma(images), images, factor).clamp_(0, 1)


def hue(images: Tensor, shift: Tensor) -> Tensor:
    """Rotate the hue, and keep saturation and value of HSV.

    Args:
        images: (B, 3, H, W) in [0, 1].
        shift: (B, 1, 1, 1), in turns.

    Returns:
        (B, 3, H, W) in [0, 1].
    """
    value, index = images.max(dim=1, keepdim=True)
    chroma = value - images.amin(dim=1, keepdim=True)
    safe = torch.where(chroma > 0, chroma, 1)  # grey has no hue; any divisor will do
    r, g, b = images.split(1, dim=1)
    # the hue in sixths of a turn, by the channel that is largest: (B, 1, H, W)
    sector = torch.where(index == 0, (g - b) / safe, torch.where(index == 1, 2 + (b - r) / safe, 4 + (r - g) / safe))
    sector = sector + 6 * shift
    k = (constant((5.0, 3.0, 1.0), images.device).view(3, 1, 1) + sector) % 6  # red, green, blue: (B, 3, H, W)
    return value - chroma * torch.minimum(k, 4 - k).clamp_(0, 1)


def solarize(images: Tensor) -> Tensor:
    """Invert values of at least 0.5: level 128 and above, as RandomSolarize(threshold=128). images: (B, 3, H, W)."""
    return torch.where(images >= 0.5, 1 - images, images)


def luma(images: Tensor) -> Tensor:
    """The greyscale image, ITU-R 601-2: (B, 3, H, W) -> (B, 1, H, W)."""
    weights = constant(LUMA, images.device, images.dtype).view(3, 1, 1)
    return (images * weights).sum(dim=1, keepdim=True)


def gaussian_blur(images: Tensor, sigma_px: Tensor) -> Tensor:
    """Gaussian blur, each image with its own width; the kernel ends at three sigma, and edges are repeated.

    Args:
        images: (B, 3, H, W).
        sigma_px: (B,) standard deviation in pixels, on the CPU; 0 leaves an image unchanged.

    Returns:
        (B, 3, H, W).
    """
    rows = (sigma_px > 0).nonzero().squeeze(1)
    if len(rows) == 0:
        return images
    sigma = sigma_px[rows, None]
    radius = math.ceil(3 * sigma.max().item())
    offsets = torch.arange(-radius, radius + 1)
    # each image's weights, 0 beyond its own three sigma: (rows, 2 * radius + 1)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2) * (offsets.abs() <= torch.ceil(3 * sigma))
    kernel = (kernel / kernel.sum(dim=1, keepdim=True)).view(len(rows), -1, 1, 1, 1)
    kernel, rows = (upload(tensor, images.device) for tensor in (kernel, rows))
    blurred = images[rows]
    for dim, pad in ((-1, (radius, radius, 0, 0)), (-2, (0, 0, radius, radius))):  # along rows, then columns
        padded = F.pad(blurred, pad, mode="replicate")
        size = images.shape[dim]
        taps = (padded.narrow(dim, t, size) * kernel[:, t] for t in range(2 * radius + 1))
        blurred = reduce(torch.add, taps)
    return images.index_copy(0, rows, blurred)
