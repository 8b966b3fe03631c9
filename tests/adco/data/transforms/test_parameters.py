"""The random choices of a view against torchvision's own distributions, and its crop against torchvision's pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import ks_2samp
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms import functional as pixels

from adco.config.schema import ViewConfig
from adco.data.transforms import parameters

COUNT = 4000


def draws(**changes: Any) -> parameters.ViewParams:
    return parameters.sample_params(ViewConfig(**changes), seed=0, epoch=0, samples=np.arange(COUNT), number=0)


def p_value(a: np.ndarray, b: np.ndarray) -> float:
    """Of the hypothesis that both samples have one distribution."""
    result: Any = ks_2samp(a, b)  # scipy has no annotations
    return result.pvalue


@pytest.mark.parametrize(("width", "height"), [(500, 375), (60, 200), (33, 32)])
def test_crops_are_distributed_as_torchvisions(width, height):
    image = torch.zeros(3, height, width)
    torch.manual_seed(0)
    theirs = np.array([RandomResizedCrop.get_params(image, [0.2, 1.0], [*parameters.ASPECT]) for _ in range(COUNT)])[
        :, [1, 0, 3, 2]
    ]
    ours = np.array([parameters.crop_box(width, height, (0.2, 1.0), u) for u in draws().crops])
    assert (ours[:, :2] >= 0).all()
    assert (ours[:, 0] + ours[:, 2] <= width).all()
    assert (ours[:, 1] + ours[:, 3] <= height).all()
    for column in range(4):
        assert p_value(ours[:, column], theirs[:, column]) > 1e-3
    assert p_value(ours[:, 2] * ours[:, 3], theirs[:, 2] * theirs[:, 3]) > 1e-3


def test_an_impossible_crop_falls_back_to_torchvisions_centre():
    u = np.full(2 * parameters.TRIES + 2, 0.999)
    for width, height in ((1000, 10), (10, 1000)):
        top, left, h, w = RandomResizedCrop.get_params(torch.zeros(3, height, width), [1.0, 1.0], [*parameters.ASPECT])
        assert parameters.crop_box(width, height, (1.0, 1.0), u) == (left, top, w, h)


def test_a_crop_has_torchvisions_pixels():
    image: Any = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8))
    for box in ((0, 0, 120, 90), (13, 7, 50, 66), (30, 20, 9, 8)):
        left, top, width, height = box
        theirs = pixels.resized_crop(image, top, left, height, width, [32, 32], antialias=True)
        assert np.array_equal(parameters.resized_crop(image, 32, box), np.asarray(theirs).transpose(2, 0, 1))


def test_colour_factors_have_torchvisions_ranges_and_share():
    choices = draws(jitter=[0.4, 0.3, 0.2, 0.1], jitter_p=0.8).choices
    changed = (choices.factors != torch.tensor([1.0, 1.0, 1.0, 0.0])).any(dim=1)
    assert changed.float().mean().item() == pytest.approx(0.8, abs=0.03)
    factors = choices.factors[changed]
    low, high = torch.tensor([0.6, 0.7, 0.8, -0.1]), torch.tensor([1.4, 1.3, 1.2, 0.1])
    assert ((factors >= low) & (factors <= high)).all()
    torch.testing.assert_close(factors.mean(dim=0), (low + high) / 2, atol=0.02, rtol=0)
    torch.testing.assert_close(factors.std(dim=0), (high - low) / 12**0.5, atol=0.02, rtol=0)


def test_all_orders_of_colour_operations_occur_equally():
    _, counts = torch.unique(draws().choices.order, dim=0, return_counts=True)
    assert len(counts) == 24
    assert ((counts - COUNT / 24) ** 2 / (COUNT / 24)).sum() < 49.7  # chi-square, 23 degrees of freedom, p = 0.001


def test_shares_of_flip_grey_solarize_and_blur():
    choices = draws(flip_p=0.5, gray_p=0.2, blur_p=0.3, blur_sigma_px=[0.1, 2.0], solarize_p=0.2).choices
    assert choices.solarize.float().mean().item() == pytest.approx(0.2, abs=0.03)
    assert not draws().choices.solarize.any()
    assert choices.flip.float().mean().item() == pytest.approx(0.5, abs=0.03)
    assert choices.gray.float().mean().item() == pytest.approx(0.2, abs=0.03)
    blurred = choices.sigma_px[choices.sigma_px > 0]
    assert len(blurred) / COUNT == pytest.approx(0.3, abs=0.03)
    assert blurred.min() >= 0.1
    assert blurred.max() <= 2.0
    assert blurred.mean().item() == pytest.approx(1.05, abs=0.05)
