"""Each batched pixel operation against Pillow and torchvision, one image at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter, ImageOps
from torchvision.transforms import functional as pixels

from adco.data.transforms import functional
from adco.data.transforms.parameters import ORDERS, AugmentParams

LEVELS = 255


@pytest.fixture(scope="module")
def photos() -> torch.Tensor:
    """(8, 3, 48, 48) uint8: smooth coloured images with edges and some noise, no two alike."""
    rng = np.random.default_rng(1)
    coarse = torch.from_numpy(rng.uniform(0, 255, (8, 3, 6, 6)))
    smooth = torch.nn.functional.interpolate(coarse, size=48, mode="bicubic").numpy()
    smooth[:, :, 10:30, 15:25] = 255 - smooth[:, :, 10:30, 15:25]
    return torch.from_numpy((smooth + rng.normal(0, 6, smooth.shape)).clip(0, 255).astype(np.uint8))


def pil(photo: torch.Tensor) -> Image.Image:
    return pixels.to_pil_image(photo)


def levels_off(ours: torch.Tensor, theirs: list[Image.Image]) -> float:
    """Mean absolute difference in levels of 255."""
    expected = torch.stack([pixels.pil_to_tensor(image) for image in theirs]).float()
    return (ours * LEVELS - expected).abs().mean().item()


OPERATIONS = {
    "brightness": (functional.brightness, pixels.adjust_brightness, (0.6, 1.4)),
    "contrast": (functional.contrast, pixels.adjust_contrast, (0.6, 1.4)),
    "saturation": (functional.saturation, pixels.adjust_saturation, (0.6, 1.4)),
    "hue": (functional.hue, pixels.adjust_hue, (-0.1, 0.1)),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_colour_operations_equal_torchvisions_on_pillow_and_on_tensors(photos, name):
    ours, theirs, (low, high) = OPERATIONS[name]
    factors = torch.linspace(low, high, len(photos))
    result = ours(photos / LEVELS, factors.view(-1, 1, 1, 1))
    rows = list(zip(photos, factors.tolist(), strict=True))
    assert levels_off(result, [theirs(pil(p), f) for p, f in rows]) < (2.0 if name == "hue" else 1.0)
    exact = torch.stack([theirs(p / LEVELS, f) for p, f in rows])
    torch.testing.assert_close(result, exact, atol=1e-4, rtol=0)  # torchvision's red weight is 0.2989, Pillow's 0.299
    assert (result - photos / LEVELS).abs().mean() > 0.01  # it did something


def test_jitter_applies_each_images_own_order(photos):
    count = len(photos)
    order = torch.from_numpy(ORDERS[np.linspace(0, 23, count).astype(int)])
    factors = torch.tensor([1.3, 0.7, 1.4, 0.08]).repeat(count, 1)
    factors[-1] = torch.tensor([1.0, 1.0, 1.0, 0.0])
    result = functional.color_jitter(photos / LEVELS, factors, order)
    functions = [theirs for _, theirs, _ in OPERATIONS.values()]
    for row in range(count):
        expected = photos[row] / LEVELS
        for number in order[row].tolist():
            expected = functions[number](expected, factors[row, number].item())
        torch.testing.assert_close(result[row], expected, atol=2e-4, rtol=0)
    assert torch.equal(result[-1], photos[-1] / LEVELS)


def test_greyscale_equals_pillow(photos):
    assert (
        levels_off(
            functional.luma(photos / LEVELS).expand(-1, 3, -1, -1), [pil(p).convert("L").convert("RGB") for p in photos]
        )
        < 0.6
    )


def test_solarize_equals_pillow_on_every_level():
    every = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(-1, 3, -1, -1)
    theirs = pixels.pil_to_tensor(ImageOps.solarize(pil(every[0]), 128))
    assert torch.equal((functional.solarize(every / LEVELS)[0] * LEVELS).round(), theirs.float())


def test_blur_equals_torchvisions_gaussian_and_is_near_pillows(photos):
    sigma = torch.tensor([0.0, 0.1, 0.5, 0.8, 1.0, 1.3, 1.7, 2.0])
    result = functional.gaussian_blur(photos / LEVELS, sigma)
    assert torch.equal(result[0], photos[0] / LEVELS)
    assert (
        levels_off(
            result, [pil(p).filter(ImageFilter.GaussianBlur(s)) for p, s in zip(photos, sigma.tolist(), strict=True)]
        )
        < 2.0
    )
    for row in range(1, len(photos)):
        size = 2 * int(np.ceil(3 * sigma[row].item())) + 1
        theirs = pixels.gaussian_blur(photos[row] / LEVELS, [size, size], [sigma[row].item()] * 2)
        inner = (slice(None), slice(6, -6), slice(6, -6))  # torchvision reflects at the edges, Pillow and we repeat
        torch.testing.assert_close(result[row][inner], theirs[inner], atol=1e-5, rtol=0)


def test_augment_composes_in_mocos_order(photos):
    count = len(photos)
    choices = AugmentParams(
        flip=torch.arange(count) % 2 == 0,
        factors=torch.tensor([1.2, 0.8, 1.3, -0.05]).repeat(count, 1),
        order=torch.arange(4).repeat(count, 1),
        gray=torch.arange(count) % 3 == 0,
        sigma_px=torch.where(torch.arange(count) % 4 == 0, 1.0, 0.0),
        solarize=torch.arange(count) % 5 == 0,
    )
    expected = functional.color_jitter(photos / LEVELS, choices.factors, choices.order)
    expected[choices.gray] = functional.luma(expected[choices.gray]).expand(-1, 3, -1, -1)
    expected = functional.gaussian_blur(expected, choices.sigma_px)
    expected[choices.solarize] = functional.solarize(expected[choices.solarize])
    expected[choices.flip] = pixels.hflip(expected[choices.flip])
    torch.testing.assert_close(
        functional.augment(photos, choices), pixels.normalize(expected, [*functional.MEAN], [*functional.STD])
    )


def test_an_images_view_does_not_depend_on_the_others_of_its_batch(photos):
    choices = AugmentParams(
        flip=torch.arange(8) % 2 == 0,
        factors=torch.rand(8, 4) * 0.2 + torch.tensor([0.9, 0.9, 0.9, -0.1]),
        order=torch.from_numpy(ORDERS[:8]),
        gray=torch.arange(8) % 3 == 0,
        sigma_px=torch.linspace(0, 2, 8),
        solarize=torch.arange(8) % 4 == 1,
    )
    together = functional.augment(photos, choices)
    one = [AugmentParams(**{name: rows[i : i + 1] for name, rows in vars(choices).items()}) for i in range(8)]
    alone = torch.cat([functional.augment(photos[i : i + 1], one[i]) for i in range(8)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
